"""A process that makes parts of batches for the one that started it, over a pipe which only the two of them hold.

`concurrent.futures.ProcessPoolExecutor` would do the same over two pipes that all processes share, and waits for ever
where one is killed while it holds a pipe's lock or is in the middle of a message.
"""

import contextlib
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection

from squeezenet_jax.data.batches import Batch
from squeezenet_jax.system import children

# From a position to a part of its batch; the parts are put together in this order.
Makers = Mapping[str, Sequence[Callable[[int], Batch]]]


class Died(Exception):
    """The worker process is no more."""


class Worker:
    def __init__(self, makers: Makers) -> None:
        self._pipe, process = children.start(_work, makers)
        # Also at this process's exit, which would otherwise wait for the worker; which ignores SIGTERM.
        self.kill = weakref.finalize(self, process.kill)

    def make(self, name: str, part: int, position: int) -> Batch:
        """Raises what the maker raises, and `Died`."""
        try:
            self._pipe.send((name, part, position))
            batch, error = self._pipe.recv()
        except (EOFError, OSError):
            self.kill()
            raise Died from None
        if error is not None:
            raise error
        return batch  # type: ignore[no-any-return]


def _work(pipe: "connection.Connection", makers: Makers) -> None:
    children.leave_signals_to_parent()
    children.end_with_parent()
    with contextlib.suppress(EOFError, OSError):  # the parent has no more use for this worker
        while True:
            name, part, position = pipe.recv()
            answer: tuple[Batch | None, Exception | None]
            try:
                answer = makers[name][part](position), None
            except Exception as error:  # noqa: BLE001 - it is the parent's to judge
                error.add_note(traceback.format_exc())
                answer = None, error
            pipe.send(answer)
