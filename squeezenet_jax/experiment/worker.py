"""A process that runs runs of a sweep for the one that started it, on its share of the machine.

What the two say to each other, over a pipe which only they hold:

    to the worker      (the name of a run, that of the one whose programs may be compiled meanwhile or ""); STOP: save
                       and end the run that you are at; QUIT
    from the worker    (READY,), (BEGAN,), (TOLD, method of the reporter, arguments...), (ENDED, status),
                       (BUSY, who is at the run), (FAILED, exception): what ends the whole sweep

A pipe that closes is the death of whoever held its other end; a worker then ends at once. Read next: `jobs.py`, the
other side.
"""

import contextlib
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Sequence
from typing import Any

from squeezenet_jax.experiment import sweep
from squeezenet_jax.experiment.ahead import Ahead
from squeezenet_jax.experiment.planning import Plan
from squeezenet_jax.experiment.shares import Machine, Share
from squeezenet_jax.runs.directory import FINISHED, RunDirectory
from squeezenet_jax.system import children, cores, processes, storage
from squeezenet_jax.system.errors import UserError

STOP, QUIT = "/stop", "/quit"  # no run's name has a slash
READY, BEGAN, TOLD, ENDED, BUSY, FAILED = "ready", "began", "told", "ended", "busy", "failed"
Order = str | tuple[str, str]


def work(pipe: Any, share: Share, plan: Plan, place: str, unfinished: Sequence[str]) -> None:
    """A worker's life. All that is `unfinished` must be able to run here before it is ready for any of it.

    `place` is the workdir as a person names it.
    """
    children.leave_signals_to_parent()
    stop, given = threading.Event(), queue.SimpleQueue[Order]()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())  # whoever sends it to this process alone means its run
    share.take(os.environ)
    parent, planned = _Parent(pipe), {run.name: run for run in plan.runs}
    threading.Thread(target=_take_orders, args=(pipe, stop, given), daemon=True).start()
    try:
        workdir = storage.expand(place)
        sweep.prepare(plan, unfinished)
        parent.tell(READY)
        with contextlib.closing(Ahead()) as ahead:
            while not isinstance(order := given.get(), str):  # QUIT
                name, following = order
                directory = RunDirectory(workdir / name)
                with directory.lock() as holder:
                    if holder:
                        parent.tell(BUSY, holder)
                        continue
                    parent.tell(BEGAN)
                    status = directory.status  # another start may have finished it meanwhile
                    if status not in FINISHED:
                        ahead.before(planned[name].settings, planned[following].settings if following else None)
                        status = sweep.run_one(plan, planned[name], directory, parent, stop.is_set)
                parent.tell(ENDED, status)
    except Exception as error:  # noqa: BLE001 - it is the parent's to judge
        parent.tell(FAILED, portable(error))


def _take_orders(pipe: Any, stop: threading.Event, given: "queue.SimpleQueue[Order]") -> None:
    order: Order = ""
    try:
        while order != QUIT:
            order = pipe.recv()
            if order == STOP:
                stop.set()
            else:
                given.put(order)
    except (EOFError, OSError):  # nobody is left who would look at what this process does
        os._exit(1)


class _Parent:
    """The parent as it is seen from a worker: also the reporter of its runs."""

    def __init__(self, pipe: Any) -> None:
        self._pipe, self._lock = pipe, threading.Lock()  # that a run hangs is told by a thread of its own

    def tell(self, *message: Any) -> None:
        with self._lock, contextlib.suppress(OSError):  # it is dead, and this process about to end
            self._pipe.send(message)

    def start(self, step: int, total_steps: int) -> None:
        self.tell(TOLD, "start", step, total_steps)

    def record(self, record: dict[str, Any]) -> None:
        self.tell(TOLD, "record", record)

    def notice(self, text: str) -> None:
        self.tell(TOLD, "notice", storage.named(text))


def portable(error: Exception) -> Exception:
    """The same error for another process, with its traceback as a note; what a pipe cannot hold becomes its text.

    Places in a bucket have their names: the other process has other copies.
    """
    try:
        error.args = tuple(storage.named(x) if isinstance(x, str) else x for x in error.args)
        if isinstance(error, OSError) and isinstance(error.filename, str):
            error.filename = storage.named(error.filename)
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - anything may go wrong in somebody's class
        error = RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
    error.add_note("".join(traceback.format_exception(error)))
    return error


def ask_machine() -> Machine:
    """What there is to divide, from a process that gives the devices back by ending."""
    pipe, process = children.start(describe)
    try:
        answer = pipe.recv()
    except EOFError:
        process.join()
        raise UserError(f"--jobs: the process that looks for devices ended with code {process.exitcode}") from None
    finally:
        pipe.close()
    process.join()
    if isinstance(answer, Exception):
        raise answer
    assert isinstance(answer, Machine)
    return answer


def describe(pipe: Any) -> None:
    """Sends what jax finds here, or the error that it ends with."""
    children.leave_signals_to_parent()
    children.end_with_parent()
    answer: Machine | Exception
    try:
        processes.join(None, None, None)  # as a run would
        if processes.several():
            raise UserError("--jobs: several processes train each run together here; leave it out")
        answer = _machine()
    except Exception as error:  # noqa: BLE001 - it is the parent's to judge
        answer = portable(error)
    with contextlib.suppress(OSError):  # nobody is left to hear it
        pipe.send(answer)


def _machine() -> Machine:
    from squeezenet_jax.system import devices  # jax

    found = devices.available()
    platform, count = found[0].platform, len(found)
    if platform == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Machine("cpu", count, memory, cores.usable())
    if platform == "gpu":
        platform = "rocm" if "rocm" in found[0].client.platform_version.lower() else "cuda"
    if platform == "tpu":  # a chip of older ones is two devices
        count = len({tuple(device.coords) for device in found})
    memory = (found[0].memory_stats() or {}).get("bytes_limit", 0) * len(found) // count
    return Machine(platform, count, memory, cores.usable())
