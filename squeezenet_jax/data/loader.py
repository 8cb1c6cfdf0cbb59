"""Makes batches ahead of time, in threads or in processes of their own, and hands them out in order.

Batches are pure functions of their position, so it does not matter who makes one, nor whether it is made twice: a
worker process that dies is replaced and nothing is lost.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from squeezenet_jax.data.batches import Batch, join
from squeezenet_jax.data.worker import Died, Makers, Worker
from squeezenet_jax.system.cores import cores

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
        self._threads: ThreadPoolExecutor | None = None
        # With worker processes every thread that makes something holds one; they are started when they are needed.
        self._idle: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        self._started: list[Worker] = []
        self._lock, self._closed = threading.Lock(), False  # of `_started`
        self._deaths = 0
        self.waited = 0.0
        self.unreadable: dict[str, None] = {}  # names with reasons, in the order in which they were met

    def stream(self, name: str, positions: Sequence[int]) -> Iterator[Batch]:
        """The batches `name` at these positions, in this order."""
        parts = range(len(self._makers[name]))
        # So many that every worker has a part to make while the batch before is being used, and one for slow disks.
        batches_ahead = max(2, -(-parallelism(self._workers) // len(parts)))
        ahead: list[list[Future[Batch]]] = []
        try:
            for place, position in enumerate(positions):
                began = time.perf_counter()
                if self._workers is None:
                    batch = join([self._make(name, part, position) for part in parts])
                else:
                    for later in positions[place + len(ahead) : place + 1 + batches_ahead]:
                        ahead.append([self._submit(name, part, later) for part in parts])
                    batch = join([future.result() for future in ahead[0]])
                    del ahead[0]
                self.waited += time.perf_counter() - began
                self._note(batch.pop("unreadable", ()))
                yield batch
        finally:
            for futures in ahead:
                for future in futures:
                    future.cancel()

    def _submit(self, name: str, part: int, position: int) -> "Future[Batch]":
        if self._threads is None:
            self._threads = ThreadPoolExecutor(parallelism(self._workers), thread_name_prefix="data")
            for _ in range(self._workers or 0):
                self._idle.put(None)
        return self._threads.submit(self._ask_worker if self._workers else self._make, name, part, position)

    def _make(self, name: str, part: int, position: int) -> Batch:
        return self._makers[name][part](position)

    def _ask_worker(self, name: str, part: int, position: int) -> Batch:
        worker = self._idle.get()
        try:
            while True:
                try:
                    worker = worker or self._start_worker()
                    batch = worker.make(name, part, position)
                except Died:
                    worker = None
                    if self._closed:
                        raise
                    self._deaths += 1
                    if self._deaths >= DEATHS_IN_A_ROW:
                        raise RuntimeError(f"worker processes for data died {self._deaths} times in a row") from None
                    self._notice("a worker process for data died; starting another one")
                else:
                    self._deaths = 0
                    return batch
        finally:
            self._idle.put(worker)

    def _start_worker(self) -> Worker:
        worker = Worker(self._makers)  # which waits until the process has all of them, and others start meanwhile
        with self._lock:
            if self._closed:
                worker.kill()
                raise Died
            self._started.append(worker)
        return worker

    def _note(self, unreadable: Sequence[str]) -> None:
        for name in unreadable:
            if name not in self.unreadable:
                self.unreadable[name] = None
                self._notice(f"left out, unreadable: {name}")
                self._left_out(name)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            for worker in self._started:
                worker.kill()


def parallelism(workers: int | None) -> int:
    """How many parts of batches are made at the same time."""
    return 1 if workers is None else workers or cores()
