"""Watches a run: log lines that do not make the training wait, and the verdicts `diverged` and `stalled`."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.settings import Settings
from squeezenet_jax.training import objective


class Reporter(Protocol):
    """Who is told how the run goes."""

    def start(self, step: int, total_steps: int) -> None: ...

    def record(self, record: dict[str, Any]) -> None: ...

    def notice(self, text: str) -> None: ...


@dataclasses.dataclass
class _Window:
    """Steps that are written as one line."""

    steps: list[tuple[int, objective.Tally]] = dataclasses.field(default_factory=list)
    done: tuple[float, float] | None = None  # clock, and input waited for, when its last step was seen to be computed


class Monitor:
    """Collects the steps' tallies in windows; a window is fetched when the one after it is under way.

    Its time is from the end of the window before to its own, each taken when the devices have computed its last step:
    the host, which runs ahead, dispatches that step earlier and fetches its tallies later.

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
    ) -> None:
        """`input_seconds` is how long the loop has waited for batches so far."""
        self._settings, self._directory, self._reporter = settings, directory, reporter
        self._steps_per_epoch, self._input_seconds = steps_per_epoch, input_seconds
        self._open, self._ended = _Window(), _Window()
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
        self._clock, self._waited = self._now()

    def add(self, step: int, tally: objective.Tally) -> None:
        """Takes what step number `step` (from 1) returned, which may still be being computed."""
        self._look()
        self._open.steps.append((step, tally))
        if step % self._settings.train.log_every_steps == 0:
            self._end_window()

    def flush(self) -> None:
        """Waits for everything that was dispatched and writes it."""
        self._end_window()
        self._end_window()

    def write(self, record: dict[str, Any]) -> None:
        self._directory.append_metrics(record)
        self._reporter.record(record)

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), self._input_seconds()

    def _look(self) -> None:
        """Notes the time when the ended window is seen to be computed; asked once a step, and never waits."""
        window = self._ended
        if window.steps and window.done is None:
            loss: Any = window.steps[-1][1]["loss"]
            if loss.is_ready():
                window.done = self._now()

    def _end_window(self) -> None:
        window, self._ended, self._open = self._ended, self._open, _Window()
        if window.steps:
            self._write_window(window)
        self._look()

    def _write_window(self, window: _Window) -> None:
        last_step = window.steps[-1][0]
        total = objective.total([tally for _, tally in window.steps])  # waits until they are computed
        (began, waited), (self._clock, self._waited) = (self._clock, self._waited), window.done or self._now()
        mean = objective.means(total)
        mean |= {name: total[name] / len(window.steps) for name in ("grad_norm", "learning_rate")}
        mean["images_per_second"] = mean.pop("count") / (self._clock - began)
        mean["input_wait"] = min((self._waited - waited) / (self._clock - began), 1.0)
        epoch = last_step / self._steps_per_epoch
        finite = {name: value if math.isfinite(value) else None for name, value in mean.items()}
        self.write({"split": "train", "step": last_step, "epoch": epoch} | finite)
        self._judge(mean["loss"], epoch)

    def _judge(self, loss: float, epoch: float) -> None:
        settings = self._settings
        self.diverged = self.diverged or not math.isfinite(loss)
        late = epoch > max(settings.optimizer.warmup_epochs, settings.train.epochs / 5)
        if late and not self._warned and self._predicts_nothing(loss):
            self._warned = True
            self._reporter.notice(
                f"STALLED? The training loss is still {loss:.4f}, within {settings.train.stall_margin} of ln(classes):"
                " the network predicts nothing. Try another model.kernel_init, a lower optimizer.peak_lr or"
                " model.conv10_relu=False."
            )

    def _predicts_nothing(self, loss: float) -> bool:
        return abs(loss - math.log(self._settings.data.num_classes)) < self._settings.train.stall_margin
