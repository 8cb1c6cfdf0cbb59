"""Watches a run: log lines that do not make the training wait, and the verdicts `diverged` and `stalled`."""

import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.settings import Settings
from squeezenet_jax.system import devices
from squeezenet_jax.training import objective


class Reporter(Protocol):
    """Who is told how the run goes."""

    def start(self, step: int, total_steps: int) -> None: ...

    def record(self, record: dict[str, Any]) -> None: ...

    def notice(self, text: str) -> None: ...


class _Mark(NamedTuple):
    """A moment at which the host looked how far the devices were."""

    step: int  # the last one that was computed
    clock: float  # seconds
    waited: float  # seconds of waiting for input, by then


Steps = list[tuple[int, objective.Tally]]


class Monitor:
    """Collects the steps' tallies in windows; a window is fetched when the one after it is under way.

    The host runs ahead of the devices, so neither when it dispatches a window nor when it fetches it says how long they
    took for it. What says so is how many steps they computed between two looks. A line's images per second are over at
    least half a regular window of them, for at either look a step is under way.

    A window ends every `train.log_every_steps` steps and at every evaluation and checkpoint, so that a run resumed from
    one of its regular checkpoints writes the lines that an uninterrupted one writes.
    """

    def __init__(
        self,
        settings: Settings,
        directory: RunDirectory,
        reporter: Reporter,
        steps_per_epoch: float,
        input_seconds: Callable[[], float],
        memory: devices.PeakMemory,
        label_entropy: float | None = None,
    ) -> None:
        """Begins to watch.

        Args:
          input_seconds: Says how long the loop has waited for batches so far.
          memory: Of the whole run, its initialisation included.
          label_entropy: The loss, in nats, of a network that has learned the classes' frequencies and nothing else
            (`data.labels`); None where they are not known, and taken to be equal.
        """
        self._settings, self._directory, self._reporter = settings, directory, reporter
        self._steps_per_epoch, self._input_seconds = steps_per_epoch, input_seconds
        self._memory = memory
        self._open: Steps = []
        self._ended: Steps = []
        self._running: deque[tuple[int, objective.Tally]] = deque()  # not seen to be computed yet
        # The closer frequencies alone come to a loss of 0, the less room there is between having learned and not.
        balanced = math.log(settings.data.num_classes)
        self._guessing = balanced if label_entropy is None else label_entropy
        self._margin = settings.train.stall_margin * self._guessing / balanced
        self._warned = False
        self.diverged = False  # a loss was not finite
        self.restart_clock()

    @property
    def stalled(self) -> bool:
        """Whether the loss of the last epoch, or of all there is, is that of a network which predicts nothing.

        Read from the log, so that it does not matter where the run was interrupted.
        """
        lines = [record for record in self._directory.read_metrics() if record["split"] == "train"]
        steps = [line["step"] - before for line, before in zip(lines, [0, *(x["step"] for x in lines)], strict=False)]
        last = [(n, x["loss"]) for n, x in zip(steps, lines, strict=True) if x["epoch"] > lines[-1]["epoch"] - 1]
        return bool(last) and self._predicts_nothing(sum(n * loss for n, loss in last) / sum(n for n, _ in last))

    def restart_clock(self) -> None:
        """What has passed since the last window does not count as training time."""
        self._marks: list[_Mark] = []
        self._start = time.perf_counter(), self._input_seconds()

    def add(self, step: int, tally: objective.Tally) -> None:
        """Takes what step number `step` (from 1) returned, which may still be being computed."""
        self._marks = self._marks or [_Mark(step - 1, *self._start)]
        self._open.append((step, tally))
        self._running.append((step, tally))
        self._look()
        if step % self._settings.train.log_every_steps == 0:
            self._end_window()

    def flush(self) -> None:
        """Waits for everything that was dispatched and writes it."""
        self._end_window()
        self._end_window()

    def write(self, record: dict[str, Any]) -> None:
        self._directory.append_metrics(record)
        self._reporter.record(record)

    def _look(self, fetched: int = 0) -> None:
        """Marks how many steps are computed by now, at least those up to step `fetched`; does not wait."""
        step = self._marks[-1].step
        while self._running and (self._running[0][0] <= fetched or _is_computed(self._running[0][1])):
            step, _ = self._running.popleft()
        if step > self._marks[-1].step:
            self._marks.append(_Mark(step, time.perf_counter(), self._input_seconds()))

    def _end_window(self) -> None:
        window, self._ended, self._open = self._ended, self._open, []
        if window:
            self._write_window(window)

    def _write_window(self, window: Steps) -> None:
        first_step, last_step = window[0][0], window[-1][0]
        total = objective.total([tally for _, tally in window])  # waits until they are computed
        self._look(fetched=last_step)
        end = next(mark for mark in self._marks if mark.step >= last_step)
        latest = min(first_step - 1, end.step - self._settings.train.log_every_steps / 2)
        begin = next((mark for mark in reversed(self._marks) if mark.step <= latest), self._marks[0])
        self._marks = self._marks[self._marks.index(begin) :]
        if not total["count"]:  # the images are named elsewhere
            self._reporter.notice(f"steps {first_step} to {last_step}: none of their images could be read")
            return
        steps, seconds = end.step - begin.step, end.clock - begin.clock
        mean = objective.means(total)
        mean |= {name: total[name] / len(window) for name in ("grad_norm", "learning_rate")}
        mean["images_per_second"] = mean.pop("count") / len(window) * steps / seconds
        mean["input_wait"] = min((end.waited - begin.waited) / seconds, 1.0)
        mean["step_seconds"], mean["step_seconds_p90"] = _typical(self._marks[: self._marks.index(end) + 1])
        epoch = last_step / self._steps_per_epoch
        finite = {name: value if math.isfinite(value) else None for name, value in mean.items()}
        memory = {"device_memory_bytes": self._memory.read()}
        self.write({"split": "train", "step": last_step, "epoch": epoch} | finite | memory)
        self._judge(mean["loss"], epoch)

    def _judge(self, loss: float, epoch: float) -> None:
        settings = self._settings
        self.diverged = self.diverged or not math.isfinite(loss)
        late = epoch > max(settings.optimizer.warmup_epochs, settings.train.epochs / 5)
        if late and not self._warned and self._predicts_nothing(loss):
            self._warned = True
            self._reporter.notice(
                f"STALLED? The training loss is still {loss:.4f}, within {self._margin:.2g} of {self._guessing:.4f},"
                " which guessing by the classes' frequencies has: the network predicts nothing. Try another"
                " model.kernel_init, a lower optimizer.peak_lr or model.conv10_relu=False."
            )

    def _predicts_nothing(self, loss: float) -> bool:
        return abs(loss - self._guessing) < self._margin


def _typical(marks: Sequence[_Mark]) -> tuple[float, float]:
    """(median, 90th percentile) of the seconds of a step; those computed between two looks took the same each."""
    each = [
        (b.clock - a.clock) / (b.step - a.step) for a, b in itertools.pairwise(marks) for _ in range(b.step - a.step)
    ]
    return statistics.median(each), sorted(each)[math.ceil(0.9 * len(each)) - 1]


def _is_computed(tally: objective.Tally) -> bool:
    loss: Any = tally["loss"]  # jax.Array's type lacks is_ready
    return bool(loss.is_ready())
