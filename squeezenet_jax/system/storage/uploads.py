"""What was written to copies goes up to their buckets, in the order of the writes and some moments behind them.

Standard library only. Read next: `lease.py`.
"""

import queue
import threading
import time
from pathlib import Path

from squeezenet_jax.system.storage.copies import goes_up, split

LAZY_SECONDS = 10.0  # between two uploads of a file that only grows
WAITING = 4  # writes that may wait for their upload; a SqueezeNet's checkpoint is 15 MB


class _Uploads:
    """A thread that uploads in order. After a failure it uploads nothing more: the order would have a hole."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Path, bytes | None]] = queue.Queue(WAITING)
        self._failure: BaseException | None = None
        threading.Thread(target=self._work, daemon=True, name="uploads").start()

    def put(self, path: Path, content: bytes | None) -> None:
        self._raise()
        self._waiting.put((path, content))

    def drain(self) -> None:
        self._waiting.join()
        self._raise()

    def _raise(self) -> None:
        if self._failure:
            raise self._failure

    def _work(self) -> None:
        from squeezenet_jax.system.storage import lease

        while True:
            path, content = self._waiting.get()
            try:
                if self._failure is None:
                    found = split(path)
                    assert found is not None
                    bucket, key = found
                    writer = lease.over(path) or bucket
                    if content is None:
                        writer.delete(key)
                    else:
                        writer.write(key, content)
            except BaseException as error:  # noqa: BLE001 - who writes next is told
                self._failure = error
            finally:
                self._waiting.task_done()


_queue: list[_Uploads] = []
_grown: dict[Path, float] = {}  # when a growing file went up last
_behind: set[Path] = set()  # growing files that have grown since


def saved(path: Path, *, lazily: bool = False) -> None:
    """The file was written: its content of now goes up, after all that was `saved` before; nothing for a local path.

    `lazily`: it only grows; then not more often than every `LAZY_SECONDS`, and before anything else that goes up.
    Raises what an earlier upload has failed with.
    """
    if not goes_up(path):
        return
    if lazily and time.monotonic() - _grown.get(path, -LAZY_SECONDS) < LAZY_SECONDS:
        _behind.add(path)
        return
    if lazily:
        _grown[path] = time.monotonic()
    _behind.discard(path)
    _send_behind()
    _uploads().put(path, path.read_bytes())
    _settle(path)


def removed(path: Path) -> None:
    """The file was removed, and goes from the bucket too."""
    if goes_up(path):
        _behind.discard(path)
        _send_behind()
        _uploads().put(path, None)
        _settle(path)


def drain() -> None:
    """Waits until all that was written is in the buckets; raises what an upload has failed with."""
    _send_behind()
    if _queue:
        _queue[0].drain()


def _settle(path: Path) -> None:
    """Who holds no lease writes now and then: a file that cannot go up is his to know at once."""
    from squeezenet_jax.system.storage import lease

    if lease.over(path) is None:
        drain()


def _send_behind() -> None:
    for path in list(_behind):
        _behind.discard(path)
        if path.exists():
            _grown[path] = time.monotonic()
            _uploads().put(path, path.read_bytes())


def _uploads() -> _Uploads:
    if not _queue:
        _queue.append(_Uploads())
    return _queue[0]
