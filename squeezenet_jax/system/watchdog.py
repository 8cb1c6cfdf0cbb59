"""Notices that a run hangs, says in what, and ends the process so that it can be started again.

A hang cannot be interrupted from within (it sits in a driver, a network file system or a collective), so the process
ends; what was saved stays. Standard library only.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

EXIT_HUNG = 75  # EX_TEMPFAIL, like a preempted run: start the same command again


class Watchdog:
    """A thread that ends the process when one phase of a run lasts longer than `limit_seconds`; 0: never.

    `on_hang(message)` is called before; every thread's stack is in `trace_file`.
    """

    def __init__(self, limit_seconds: float, on_hang: Callable[[str], None], trace_file: Path) -> None:
        self._limit, self._on_hang, self._trace_file = limit_seconds, on_hang, trace_file
        self._phase, self._since = "start", time.monotonic()
        self._ended = threading.Event()

    def phase(self, name: str) -> None:
        """The run is now in this phase, such as "step 12" or "checkpoint of step 12"; each call counts as progress."""
        self._since, self._phase = time.monotonic(), name

    def _watch(self) -> None:
        while not self._ended.wait(min(self._limit / 10, 5.0)):
            phase, lasted = self._phase, time.monotonic() - self._since
            if lasted > self._limit:
                message = f"no progress for {lasted:,.0f} s in {phase}; stacks in {self._trace_file}"
                for say in (self._on_hang, self._write_stacks):
                    # What hangs may be the disk: neither the exit nor the message must wait for the other's.
                    threading.Thread(target=say, args=(message,), daemon=True).start()
                time.sleep(2.0)
                try:
                    for child in multiprocessing.active_children():  # one that hangs would not end with this process
                        child.kill()
                finally:
                    os._exit(EXIT_HUNG)

    def _write_stacks(self, message: str) -> None:
        with contextlib.suppress(OSError), self._trace_file.open("w") as file:
            file.write(f"{message}\n")
            faulthandler.dump_traceback(file)

    @contextlib.contextmanager
    def watching(self) -> Iterator["Watchdog"]:
        if self._limit:
            self.phase("start")
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        try:
            yield self
        finally:
            self._ended.set()
