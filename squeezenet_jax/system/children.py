"""Processes that this one starts of its own program: on which cores, with whose signals, how urgent.

Standard library only.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

SPAWN = multiprocessing.get_context("spawn")  # a fork would take over the locks of threads that it does not have
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def start(target: Callable[..., None], *arguments: Any, own_cores: Sequence[int] = ()) -> tuple[Any, Any]:
    """(this end of the pipe, process) of `target(its end, *arguments)` on these cores; empty: on all.

    The process is bound from its first moment, so that every pool of threads in it has the size of its share, and
    signals wait until it is ready for them.
    """
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=target, args=(theirs, *arguments), name=target.__name__)
    with _bound_to(own_cores), _signals_wait():
        process.start()
    theirs.close()  # the process has the only other end
    return ours, process


@contextlib.contextmanager
def _bound_to(own_cores: Sequence[int]) -> Iterator[None]:
    if not own_cores:
        yield
        return
    before = os.sched_getaffinity(0)  # of this thread; a process that it starts takes it over
    os.sched_setaffinity(0, own_cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent() -> None:
    """A terminal's signals go to the whole group, and a batch system's to every process: the parent decides."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def use_idle_cores_only() -> None:
    """From now on this process runs where a core has nothing else to do, and is the first to go if memory runs out.

    That is Linux; elsewhere it has the lowest of the usual priorities.
    """
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def use_cores_like_others(pid: int) -> None:
    """Takes `use_idle_cores_only` back, where that is possible, for a process that somebody now waits for."""
    if not hasattr(os, "SCHED_IDLE"):
        return
    for _ in range(2):  # its threads may have started others meanwhile
        with contextlib.suppress(OSError):  # it has ended, or one of them
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))
