"""What a person sees while runs run: one line that changes on a terminal, a line now and then elsewhere."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

QUIET_SECONDS = 10.0  # between two lines where the output is no terminal
WORTH_SAYING = 0.1  # share of the time that is spent on waiting for input


class Progress:
    """Reports the runs of a sweep; `run` gives the reporter of one of them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._finished_seconds: list[float] = []

    def skip(self, name: str, number: int, total: int, why: str) -> None:
        self._console.print(f"run {number}/{total} {name}: {why}", highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def run(self, name: str, number: int, total: int) -> Iterator["RunReporter"]:
        began = time.monotonic()
        typical = sum(self._finished_seconds) / len(self._finished_seconds) if self._finished_seconds else None
        reporter = RunReporter(self._console, f"run {number}/{total} {name}", total - number, typical)
        with reporter:
            yield reporter
        self._finished_seconds.append(time.monotonic() - began)


class RunReporter:
    """Shows one run's step, loss, accuracy, images/s and the time that is left for it and the runs behind it."""

    def __init__(self, console: Console, title: str, runs_behind: int, typical_seconds: float | None) -> None:
        self._console, self._title = console, title
        self._runs_behind, self._typical = runs_behind, typical_seconds
        self._live = console.status(f"{title}: compiling") if console.is_terminal else None
        self._began = self._said = time.monotonic()
        self._first_step = self._total_steps = 0
        self._latest: dict[str, Any] = {}
        self._accuracy = ""

    def __enter__(self) -> "RunReporter":
        if self._live:
            self._live.start()
        else:
            self._print("started")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()
        if self._latest:
            self._print(self._line())

    def start(self, step: int, total_steps: int) -> None:
        self._began, self._first_step, self._total_steps = time.monotonic(), step, total_steps
        if step:
            self._print(f"resumed at step {step}")

    def record(self, record: dict[str, Any]) -> None:
        if record["split"] == "eval":
            self._accuracy = f", held-out top-1 {100 * record['top1']:.2f} %"
        else:
            self._latest = record
        if not self._latest:
            return
        if self._live:
            self._live.update(f"{self._title}: {self._line()}")
        elif time.monotonic() - self._said > QUIET_SECONDS:
            self._print(self._line())

    def notice(self, text: str) -> None:
        self._console.print(Text(f"{self._title}: {text}", style="bold red"), soft_wrap=True)

    def _line(self) -> str:
        latest = self._latest
        loss, rate = latest.get("loss"), latest.get("images_per_second")
        parts = [f"step {latest['step']}/{self._total_steps}", f"loss {loss:.4f}" if loss is not None else "loss NaN"]
        if rate:
            parts.append(f"{rate:,.0f} images/s")
        if latest["input_wait"] > WORTH_SAYING:
            parts.append(f"waits for input {100 * latest['input_wait']:.0f} % of the time")
        return ", ".join(parts) + self._accuracy + self._time_left()

    def _time_left(self) -> str:
        done, elapsed = self._latest["step"] - self._first_step, time.monotonic() - self._began
        if done <= 0:
            return ""
        per_step = elapsed / done
        seconds = per_step * (self._total_steps - self._latest["step"])
        seconds += self._runs_behind * (self._typical or per_step * self._total_steps)
        return f", {int(seconds) // 60}m{int(seconds) % 60:02d}s left" if seconds else ""

    def _print(self, text: str) -> None:
        self._said = time.monotonic()
        self._console.print(f"{self._title}: {text}", highlight=False, markup=False, soft_wrap=True)
