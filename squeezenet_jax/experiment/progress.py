"""What a person sees while runs run: lines that change on a terminal, a line now and then elsewhere.

`Progress` is for runs one after the other, `SideBySide` for several at once.
"""

import contextlib
import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

QUIET_SECONDS = 10.0  # between two lines where the output is no terminal
WORTH_SAYING = 0.1  # share of the time that is spent on waiting for input


class Progress:
    """Reports the runs of a sweep; `run` gives the reporter of one of them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._finished_seconds: list[float] = []

    def skip(self, name: str, number: int, total: int, why: str) -> None:
        _print(self._console, f"run {number}/{total} {name}: {why}")

    @contextlib.contextmanager
    def run(self, name: str, number: int, total: int) -> Iterator["RunReporter"]:
        began = time.monotonic()
        typical = _mean(self._finished_seconds)
        title = f"run {number}/{total} {name}"
        live = self._console.status(Text(f"{title}: compiling")) if self._console.is_terminal else None
        with (
            live or contextlib.nullcontext(),
            RunReporter(self._console, title, lambda whole: (total - number) * (typical or whole)) as reporter,
        ):
            if live:
                reporter.show = lambda: live.update(Text(reporter.line()))
            yield reporter
        self._finished_seconds.append(time.monotonic() - began)


class SideBySide:
    """Reports runs that run at the same time: a line for each, and one for all with the time that is left. A context.

    `waiting` is how long each run is that has not begun, for whoever begins them to set, in any unit: the same as of
    `work` where one begins.
    """

    def __init__(self, console: Console, jobs: int) -> None:
        self._console, self._quiet_seconds = console, jobs * QUIET_SECONDS
        self.waiting: Sequence[float] = ()
        self._ended = 0
        self._running: dict[str, RunReporter] = {}
        self._work: dict[str, float] = {}
        self._ended_paces: list[float] = []  # seconds for each unit of work
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(get_renderable=self._lines, console=console, transient=True)
        self._said = time.monotonic()

    def __enter__(self) -> "SideBySide":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def skip(self, name: str, number: int, total: int, why: str) -> None:
        _print(self._console, f"run {number}/{total} {name}: {why}")

    def begin(self, name: str, number: int, total: int, work: float = 1.0) -> "RunReporter":
        """The reporter of a run that begins; `end` ends it."""
        reporter = RunReporter(self._console, f"run {number}/{total} {name}", quiet_seconds=self._quiet_seconds)
        if self._live:
            reporter.show = lambda: None  # its line is asked for as often as the display is drawn
        self._work[name], self._running[name] = work, reporter  # in this order: the display is drawn by a thread
        return reporter.__enter__()

    def end(self, name: str) -> None:
        reporter = self._running.pop(name)
        reporter.__exit__()
        self._ended += 1
        self._ended_paces.append(reporter.seconds / self._work[name])

    def say(self) -> None:
        """Prints the line for all, now and then, where the output is no terminal."""
        if not self._live and self._running and time.monotonic() - self._said > self._quiet_seconds:
            self._said = time.monotonic()
            _print(self._console, self.whole())

    def whole(self) -> str:
        """How far all of it is, such as "all: 3 of 9 runs ended, 4 running, 12m05s left"."""
        running, waiting = dict(self._running), list(self.waiting)
        total = self._ended + len(running) + len(waiting)
        text = f"all: {self._ended} of {total} runs ended, {len(running)} running"
        expected = {name: reporter.expected_seconds() for name, reporter in running.items()}
        paces = [whole / self._work[name] for name, whole in expected.items() if whole]
        pace = _mean(self._ended_paces) or _mean(paces)
        if pace is None or not running:
            return text
        left = [
            max((expected[name] or pace * self._work[name]) - reporter.seconds, 0.0)
            for name, reporter in running.items()
        ]
        return text + _left(seconds_until_all_ended(left, [pace * work for work in waiting]))

    def _lines(self) -> Group:
        lines = [*(reporter.line() for reporter in list(self._running.values())), self.whole()]
        return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))


def seconds_until_all_ended(running: Sequence[float], waiting: Sequence[float]) -> float:
    """When the last run ends if each that waits, with its own seconds, takes the place of the first that ends.

    >>> seconds_until_all_ended([10.0, 40.0], waiting=[30.0, 30.0])
    70.0
    """
    ends = list(running)
    heapq.heapify(ends)
    for seconds in waiting:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)


class RunReporter:
    """Says one run's step, loss, accuracy, images/s and the time that is left.

    `seconds_behind` says how long the runs behind it will take, from how long this one takes. `show` is set where a
    line changes on a terminal, and is called when `line` has changed; elsewhere the line is printed now and then.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        seconds_behind: Callable[[float], float] = lambda whole: 0.0,
        quiet_seconds: float = QUIET_SECONDS,
    ) -> None:
        self._console, self._title, self._quiet_seconds = console, title, quiet_seconds
        self._seconds_behind = seconds_behind
        self.show: Callable[[], None] | None = None
        self._created = self._began = self._said = time.monotonic()
        self._first_step = self._total_steps = 0
        self._latest: dict[str, Any] = {}
        self._accuracy = ""

    @property
    def seconds(self) -> float:
        """Since it was begun."""
        return time.monotonic() - self._created

    def __enter__(self) -> "RunReporter":
        if not self._console.is_terminal:
            self._print(f"{self._title}: started")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._latest:
            self._print(self.line())

    def start(self, step: int, total_steps: int) -> None:
        self._began, self._first_step, self._total_steps = time.monotonic(), step, total_steps
        if step:
            self._print(f"{self._title}: resumed at step {step}")

    def record(self, record: dict[str, Any]) -> None:
        if record["split"] == "eval":
            self._accuracy = f", held-out top-1 {100 * record['top1']:.2f} %"
        else:
            self._latest = record
        if not self._latest:
            return
        if self.show:
            self.show()
        elif time.monotonic() - self._said > self._quiet_seconds:
            self._print(self.line())

    def notice(self, text: str) -> None:
        self._console.print(Text(f"{self._title}: {text}", style="bold red"), soft_wrap=True)

    def line(self) -> str:
        latest = self._latest
        if not latest:
            return f"{self._title}: compiling"
        loss, rate = latest.get("loss"), latest.get("images_per_second")
        parts = [f"step {latest['step']}/{self._total_steps}", f"loss {loss:.4f}" if loss is not None else "loss NaN"]
        if rate:
            parts.append(f"{rate:,.0f} images/s")
        if median := latest.get("step_seconds"):  # also "p90": a line of an earlier version has neither
            parts.append(f"{1e3 * median:.3g} ms a step (90 % below {1e3 * latest['step_seconds_p90']:.3g})")
        if memory := latest.get("device_memory_bytes"):
            parts.append(f"{memory / 2**30:.1f} GiB")
        if latest["input_wait"] > WORTH_SAYING:
            parts.append(f"waits for input {100 * latest['input_wait']:.0f} % of the time")
        return f"{self._title}: {', '.join(parts)}{self._accuracy}{self._time_left()}"

    def expected_seconds(self) -> float | None:
        """From its begin to its end; None where there is nothing yet to tell from."""
        done = self._latest["step"] - self._first_step if self._latest else 0
        if done <= 0:
            return None
        per_step = (time.monotonic() - self._began) / done
        left: float = per_step * (self._total_steps - self._latest["step"])
        return self.seconds + left

    def _time_left(self) -> str:
        done, elapsed = self._latest["step"] - self._first_step, time.monotonic() - self._began
        if done <= 0:
            return ""
        per_step = elapsed / done
        seconds = per_step * (self._total_steps - self._latest["step"])
        return _left(seconds + self._seconds_behind(per_step * self._total_steps))

    def _print(self, text: str) -> None:
        self._said = time.monotonic()
        _print(self._console, text)


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _left(seconds: float) -> str:
    return f", {int(seconds) // 60}m{int(seconds) % 60:02d}s left" if seconds else ""


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
