"""Processes that this one starts of its own program: on which cores, with whose signals, how urgent.

Standard library only.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any

SPAWN = multiprocessing.get_context("spawn")  # a fork would take over the locks of threads that it does not have
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def start(
    target: Callable[..., None], *arguments: Any, own_cores: Sequence[int] = (), urgent: bool = True
) -> tuple[Any, Any]:
    """(this end of the pipe, process) of `target(its end, *arguments)` on these cores; empty: on all.

    The process is bound from its first moment, so that every pool of threads in it has the size of its share, and
    signals wait until it is ready for them. One that is not `urgent` runs where a core has nothing else to do, if
    `gives_way` says that this is possible. Raises `OSError` where no process can be started so.
    """
    resource_tracker.ensure_running()  # the first process would start it, and let signals through
    if urgent:
        return _start(target, arguments, own_cores)
    with ThreadPoolExecutor(1) as thread:  # whose urgency the process has; a thread cannot become more urgent again
        return thread.submit(_start_giving_way, target, arguments, own_cores).result()


def _start_giving_way(
    target: Callable[..., None], arguments: Sequence[Any], own_cores: Sequence[int]
) -> tuple[Any, Any]:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # of this thread
    return _start(target, arguments, own_cores)


def _start(target: Callable[..., None], arguments: Sequence[Any], own_cores: Sequence[int]) -> tuple[Any, Any]:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_begin, args=(target, theirs), name=target.__name__)
    with _bound_to(own_cores), _signals_wait():
        process.start()
    theirs.close()  # the process has the only other end
    with contextlib.suppress(OSError):  # it is dead already, as whoever asks it will find out
        ours.send(arguments)  # with the start they would be waited for, for ever if it died meanwhile
    return ours, process


def _begin(target: Callable[..., None], pipe: Any) -> None:
    try:
        arguments = pipe.recv()
    except (EOFError, OSError):  # nobody is left who would want something
        return
    target(pipe, *arguments)


def gives_way() -> bool:
    """Whether a process that is not urgent can be had here."""
    return hasattr(os, "SCHED_IDLE")


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


def end_with_parent(before: Callable[[], None] = lambda: None) -> None:
    """A parent that is killed tells nobody, and this process may be at something that never ends."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            connection.wait([parent.sentinel])
            before()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def go_first_if_memory_runs_out() -> None:
    """Linux; elsewhere nothing changes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
