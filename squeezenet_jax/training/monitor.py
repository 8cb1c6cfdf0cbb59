"""Watches a run: log lines that do not make the training wait, and the verdicts `diverged` and `stalled`."""

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


class Monitor:
    """Collects the steps' tallies in windows; a window is fetched when the one after it is under way.

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
        self._open: list[tuple[int, objective.Tally]] = []
        self._ended: list[tuple[int, objective.Tally]] = []
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
        self._clock, self._waited = time.perf_counter(), self._input_seconds()

    def add(self, step: int, tally: objective.Tally) -> None:
        """Takes what step number `step` (from 1) returned, which may still be being computed."""
        self._open.append((step, tally))
        if step % self._settings.train.log_every_steps == 0:
            self._end_window()

    def flush(self) -> None:
        """Waits for everything that was dispatched and writes it."""
        self._end_window()
        self._end_window()

    def write(self, record: dict[str, Any]) -> None:
        self._directory.append_metrics(record)
        self._reporter.record(record)

    def _end_window(self) -> None:
        ended, self._ended, self._open = self._ended, self._open, []
        if not ended:
            return
        last_step = ended[-1][0]
        total = objective.total([tally for _, tally in ended])
        began, waited = self._clock, self._waited
        self.restart_clock()
        mean = objective.means(total)
        mean |= {name: total[name] / len(ended) for name in ("grad_norm", "learning_rate")}
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
