"""Places that a person names: a local path, or gs://BUCKET/PATH and s3://BUCKET/PATH. Standard library only.

All other code knows local paths only. A place in a bucket has a local copy: `expand` says where, `fetch` brings what
the bucket has, and whatever is written there by `atomic.write` goes up, in the order of the writes and some moments
behind them. So a bucket always holds what the folder held at some moment, as a disk does after a kill; an object
appears complete or not at all. Copies are temporary; `cached` ones, of datasets, stay.

Read next: `lease.py` (who may write a run), `buckets.py` (the stores' clients).
"""

import atexit
import concurrent.futures
import contextlib
import fcntl
import functools
import os
import queue
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from squeezenet_jax.system.errors import TryAgain, UserError, unknown

if TYPE_CHECKING:
    from squeezenet_jax.system.buckets import Bucket

SCHEMES = ("gs", "s3")
LAZY_SECONDS = 10.0  # between two uploads of a file that only grows
WAITING = 4  # writes that may wait for their upload; a SqueezeNet's checkpoint is 15 MB
AT_ONCE = 8  # downloads
WORTH_SAYING = 100 << 20  # bytes to download
LEASE = "lock"  # the object that says who runs a run; never copied
PREFIX = "squeezenet_jax-"


def expand(place: str | os.PathLike[str], field: str = "") -> Path:
    """The local path of a place: itself, with ~ replaced, or where the copy of a place in a bucket is.

    Raises `UserError`, which begins with `field` and the place where there is a field, for another scheme than
    `SCHEMES`, an address without a bucket, and where the store's client is not installed.
    """
    return _local(place, field, _scratch)


def cached(place: str | os.PathLike[str], field: str = "") -> Path:
    """As `expand`, but the copy stays: $SQUEEZENET_JAX_BUCKETS, or ~/.cache/squeezenet_jax/buckets."""
    return _local(place, field, _cache)


def local_only(place: str | os.PathLike[str], field: str, why: str) -> Path:
    """The local path of what cannot lie in a bucket."""
    if _address(place):
        raise UserError(f"{field}: {os.fspath(place)}: is in a bucket; {why}")
    return expand(place, field)


def is_remote(path: Path) -> bool:
    """Whether a local path is the copy of a place in a bucket."""
    return _split(path) is not None


def named(text: str) -> str:
    """A text with the names of places in place of those of their copies."""
    for root in _roots:
        text = re.sub(rf"{re.escape(str(root))}/({'|'.join(SCHEMES)})/", r"\1://", text)
    return text


def fetch(path: Path, wanted: Callable[[str], bool] = lambda key: True, *, exact: bool = True) -> None:
    """Makes the copy at `path`, a file or a folder, what the bucket has, of what is `wanted`; nothing for a local path.

    Files that are the same already stay; others go, if it is to be `exact`. `TryAgain` where the bucket cannot be
    reached.
    """
    if (found := _split(path)) is None:
        return
    drain()
    bucket, key = found
    root = path.parents[key.count("/")] if key else path
    below = bucket.entries(f"{key}/" if key else "")
    if not below and key:
        below = {name: entry for name, entry in bucket.entries(key).items() if name == key}
    needed = {}
    for name, entry in below.items():
        local = root / name
        if name.endswith("/") or local.name == LEASE or not wanted(name):
            continue
        if {"", ".", ".."} & set(name.split("/")):
            raise UserError(f"{bucket.address(name)}: is an object whose name is no path")
        status = local.stat() if local.exists() else None
        if status is None or status.st_size != entry.size or abs(status.st_mtime - entry.updated) > 1e-3:
            needed[name] = entry
    if exact and path.is_dir():
        for local in path.rglob("*"):
            name = local.relative_to(root).as_posix()
            if local.is_file() and name not in below and wanted(name):
                local.unlink()

    if not needed:
        return
    if (size := sum(entry.size for entry in needed.values())) > WORTH_SAYING:
        where = bucket.address(key)
        print(f"fetching {len(needed):,} files, {size / 1e9:.1f} GB, from {where}", file=sys.stderr, flush=True)

    def bring(numbered: tuple[int, str]) -> None:
        number, name = numbered
        part, local = Path(parts) / str(number), root / name
        bucket.download(name, part)
        os.utime(part, (needed[name].updated,) * 2)
        local.parent.mkdir(parents=True, exist_ok=True)
        part.replace(local)

    # Parts lie beside what is listed, on the same disk.
    with tempfile.TemporaryDirectory(prefix=".parts-", dir=root.parent) as parts:
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as executor:
            jobs = [executor.submit(bring, numbered) for numbered in enumerate(needed)]
        for job in jobs:
            with contextlib.suppress(FileNotFoundError):  # it was removed since it was listed
                job.result()


def brought(place: str | os.PathLike[str], field: str = "") -> Path:
    """`expand`, with all that the bucket has there."""
    path = expand(place, field)
    fetch(path)
    return path


@functools.cache
def fetch_once(path: Path, wanted: Callable[[str], bool] = lambda key: True) -> None:
    """`fetch` of what only grows, once in a process: what was made here, and has not gone up, stays."""
    fetch(path, wanted, exact=False)


def saved(path: Path, *, lazily: bool = False) -> None:
    """The file was written: its content of now goes up, after all that was `saved` before; nothing for a local path.

    `lazily`: it only grows; then not more often than every `LAZY_SECONDS`, and before anything else that goes up.
    Raises what an earlier upload has failed with.
    """
    if not _goes_up(path):
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
    if _goes_up(path):
        _behind.discard(path)
        _send_behind()
        _uploads().put(path, None)
        _settle(path)


def publish(path: Path) -> None:
    """Sends all files below a cached folder, those that describe it last: without them it is no dataset."""
    found = _split(path)
    assert found is not None
    bucket, key = found
    root = path.parents[key.count("/")]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: (file.suffix == ".json", file.name == "features.json")):
        bucket.write(file.relative_to(root).as_posix(), file.read_bytes())
    for name, entry in bucket.entries(f"{key}/").items():
        if (root / name).is_file():
            os.utime(root / name, (entry.updated,) * 2)


def drain() -> None:
    """Waits until all that was written is in the buckets; raises what an upload has failed with."""
    _send_behind()
    if _queue:
        _queue[0].drain()


@contextlib.contextmanager
def lent(path: Path) -> Iterator[str | None]:
    """Holds the folder `path` of a bucket for this process; yields None, or who holds it already."""
    from squeezenet_jax.system import lease

    found = _split(path)
    assert found is not None
    bucket, key = found
    with lease.held(bucket, f"{key}/{LEASE}", path) as holder:
        try:
            yield holder
        except BaseException:
            with contextlib.suppress(TryAgain, UserError):  # what ended it is worth more
                drain()
            raise
        drain()


def is_lent(path: Path) -> bool:
    """Whether a process seems to hold the folder `path` of a bucket."""
    from squeezenet_jax.system import lease

    found = _split(path)
    assert found is not None
    bucket, key = found
    return lease.is_held(bucket, f"{key}/{LEASE}")


def _settle(path: Path) -> None:
    """Who holds no lease writes now and then: a file that cannot go up is his to know at once."""
    from squeezenet_jax.system import lease

    if lease.over(path) is None:
        drain()


def _send_behind() -> None:
    for path in list(_behind):
        _behind.discard(path)
        if path.exists():
            _grown[path] = time.monotonic()
            _uploads().put(path, path.read_bytes())


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
        from squeezenet_jax.system import lease

        while True:
            path, content = self._waiting.get()
            try:
                if self._failure is None:
                    found = _split(path)
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
_roots: list[Path] = []  # folders that have copies in them, as SCHEME/BUCKET/KEY
_cached: list[Path] = []  # the one of `cached`
_kept_open: list[IO[str]] = []
_grown: dict[Path, float] = {}  # when a growing file went up last
_behind: set[Path] = set()  # growing files that have grown since


def _uploads() -> _Uploads:
    if not _queue:
        _queue.append(_Uploads())
    return _queue[0]


def _address(place: str | os.PathLike[str]) -> re.Match[str] | None:
    """Of a `Path` too, which has one slash where an address has two."""
    return re.match(rf"({'|'.join(SCHEMES)}):/{{1,2}}(.*)", os.fspath(place), re.DOTALL)


def _local(place: str | os.PathLike[str], field: str, root: Callable[[], Path]) -> Path:
    text = os.fspath(place)
    before = f"{field}: {text}: " if field else ""
    match = _address(text)
    if match is None:
        if other := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text):
            raise UserError(f"{before}{unknown('scheme', other[1], SCHEMES)}")
        return Path(os.path.expanduser(text))
    scheme, (name, _, key) = match[1], match[2].partition("/")
    parts = [part for part in key.split("/") if part]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{2,}", name) or {".", ".."} & set(parts):
        raise UserError(
            f"{before or 'it '}is not allowed; it must be {scheme}://BUCKET/PATH, with 3 characters or more in BUCKET"
        )
    from squeezenet_jax.system import buckets

    buckets.check_installed(scheme, before)
    path = root().joinpath(scheme, name, *parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _split(path: Path) -> "tuple[Bucket, str] | None":
    """(bucket, key) of a copy."""
    home = next((root for root in _roots if path.is_relative_to(root)), None)
    if home is None:
        return None
    scheme, name, *parts = path.relative_to(home).parts
    from squeezenet_jax.system import buckets

    return buckets.connect(scheme, name), "/".join(parts)


def _goes_up(path: Path) -> bool:
    """Whether it is a copy that is sent as it changes; one of `cached` is not."""
    return bool(_roots) and _split(path) is not None and not (_cached and path.is_relative_to(_cached[0]))


@functools.cache
def _scratch() -> Path:
    """A new folder, removed when the process ends; those of processes that were killed are removed now."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (left / ".held").open() as file:  # another user's, or held
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    root = Path(os.path.realpath(tempfile.mkdtemp(prefix=PREFIX)))
    file = (root / ".held").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    _kept_open.append(file)  # until the process ends, however it ends
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    _roots.append(root)
    return root


@functools.cache
def _cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    chosen = os.environ.get("SQUEEZENET_JAX_BUCKETS") or os.path.join(cache, "squeezenet_jax", "buckets")
    root = Path(os.path.abspath(os.path.expanduser(chosen)))
    _roots.append(root)
    _cached.append(root)
    return root
