"""Makes batches ahead of time, in threads or in processes of their own, and hands them out in order.

Batches are pure functions of their position, so it does not matter who makes one, nor whether it is made twice: a
worker process that dies is replaced and nothing is lost.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from types import TracebackType

from squeezenet_jax.data.batches import Batch, join

# From a position to a part of its batch; the parts are put together in this order.
Makers = Mapping[str, Sequence[Callable[[int], Batch]]]

Task = tuple[str, int, int]  # the maker's name, the part, the position

DEATHS_IN_A_ROW = 3  # of worker processes, without a batch in between, until it is no accident


class Loader:
    """Streams of batches from `makers`, functions from a position to a part of the batch (`batches.in_parts`).

    `workers` is the number of processes that make them; 0 means threads of this one, as many as it has cores; None
    means that a batch is made when it is asked for. `notice` is told of workers that died and of images that could not
    be read, each once, and `left_out` of those images' names; `waited` is how many seconds were spent waiting for
    batches.
    """

    def __init__(
        self,
        makers: Makers,
        workers: int | None,
        notice: Callable[[str], None],
        left_out: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._makers, self._workers, self._notice, self._left_out = makers, workers, notice, left_out
        self._executor: Executor | None = None
        self._deaths = 0
        self.waited = 0.0
        self.unreadable: dict[str, None] = {}  # names with reasons, in the order in which they were met

    def stream(self, name: str, positions: Sequence[int]) -> Iterator[Batch]:
        """The batches `name` at these positions, no two the same, in this order."""
        makers = self._makers[name]
        ahead: dict[Task, Future[Batch] | None] = {}  # under way, or to be begun
        try:
            for place, position in enumerate(positions):
                began = time.perf_counter()
                if self._workers is None:
                    batch = join([make(position) for make in makers])
                else:
                    # So many that every worker has a part to make while the batch before is being used.
                    last = place + -(-parallelism(self._workers) // len(makers))
                    for later in positions[place : last + 1]:
                        for part in range(len(makers)):
                            ahead.setdefault((name, part, later), None)
                    batch = join([self._first(ahead) for _ in makers])
                self.waited += time.perf_counter() - began
                self._note(batch.pop("unreadable", ()))
                yield batch
        finally:
            for future in ahead.values():
                if future:
                    future.cancel()

    def _first(self, ahead: dict[Task, "Future[Batch] | None"]) -> Batch:
        """Takes the first of `ahead`, all of which are begun; where workers have died, the work goes to new ones."""
        while True:
            try:
                for task, future in ahead.items():
                    ahead[task] = future or self._submit(*task)
                first = next(iter(ahead.values()))
                assert first is not None
                batch = first.result()
            except BrokenProcessPool:
                self._deaths += 1
                if self._deaths >= DEATHS_IN_A_ROW:
                    raise RuntimeError(f"worker processes for data died {self._deaths} times in a row") from None
                self._notice("a worker process for data died; starting the workers again")
                self._close_executor()
                ahead.update(dict.fromkeys(ahead))
            else:
                self._deaths = 0
                del ahead[next(iter(ahead))]
                return batch

    def _submit(self, name: str, part: int, position: int) -> "Future[Batch]":
        if self._executor is None:
            if self._workers:
                self._executor = ProcessPoolExecutor(
                    self._workers,
                    _Spawn(),  # a fork of a process that runs jax may deadlock
                    initializer=_begin_worker,
                    initargs=(self._makers,),
                )
            else:
                self._executor = ThreadPoolExecutor(parallelism(0), thread_name_prefix="data")
        if self._workers:
            return self._executor.submit(_make, name, part, position)
        return self._executor.submit(self._makers[name][part], position)

    def _note(self, unreadable: Sequence[str]) -> None:
        for name in unreadable:
            if name not in self.unreadable:
                self.unreadable[name] = None
                self._notice(f"left out, unreadable: {name}")
                self._left_out(name)

    def _close_executor(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_executor()


def cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallelism(workers: int | None) -> int:
    """How many parts of batches are made at the same time."""
    return 1 if workers is None else workers or cores()


class _Worker(multiprocessing.context.SpawnProcess):
    def terminate(self) -> None:
        """Workers ignore SIGTERM; and one whose neighbour was killed may wait for a lock for ever."""
        self.kill()


class _Spawn(multiprocessing.context.SpawnContext):
    Process = _Worker


_makers: Makers = {}  # in a worker process


def _begin_worker(makers: Makers) -> None:
    global _makers
    _makers = makers
    for number in (signal.SIGINT, signal.SIGTERM):  # they go to the whole group; the main process decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed tells nobody; without this its workers would stay for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _make(name: str, part: int, position: int) -> Batch:
    return _makers[name][part](position)
