"""Curves, settings and the comparison in the tools that people watch with: TensorBoard, Weights & Biases.

metrics.jsonl stays the record of a run; what is written here is a copy that nothing reads back. A tool's package is
imported when a run that wants it starts. Whatever then goes wrong with it is said once, and the run goes on without.
Read next: `training/monitor.py`, whose lines are what is logged.
"""

import contextlib
import dataclasses
import importlib.util
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from squeezenet_jax import report, settings
from squeezenet_jax.report.columns import SHOWN
from squeezenet_jax.report.files import markdown
from squeezenet_jax.runs.directory import RunDirectory, write_text
from squeezenet_jax.system import nested, processes, storage
from squeezenet_jax.system.errors import UserError

if TYPE_CHECKING:  # it imports jax
    from squeezenet_jax.training.monitor import Reporter

Record = Mapping[str, Any]  # a line of metrics.jsonl
EVENTS = "events.out.tfevents.*"  # what TensorBoard looks for
ID = "wandb.txt"  # which of the project's runs this one is
FINISH_SECONDS = 30  # what an upload may take at the end of a run
NOT_CURVES = ("split", "step", "count")


class Logger(Protocol):
    """A tool that curves go to. Any method may raise anything."""

    def write(self, record: Record) -> None:
        """Takes a line of metrics.jsonl, whole by then for whoever looks at it."""

    def close(self) -> None: ...


def check(wanted: settings.LoggingSettings) -> None:
    """Raises `UserError` where a tool's package is not installed."""
    for field, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        if getattr(wanted, field) and importlib.util.find_spec(package) is None:
            raise UserError(f"logging.{field}: needs {package}; pip install -r requirements-{field}.txt")


@contextlib.contextmanager
def attached(
    reporter: "Reporter", directory: RunDirectory, used: settings.Settings, group: str
) -> Iterator["Reporter"]:
    """The reporter for a run: `reporter` and, in the main process, the tools that its settings ask for.

    `group` is what the tools show the runs of one sweep under.
    """
    openers: dict[str, Callable[[int], Logger]] = {}
    if used.logging.tensorboard:
        openers["tensorboard"] = lambda step: TensorBoard(directory, used, step)
    if used.logging.wandb:
        openers["wandb"] = lambda step: WeightsAndBiases(directory, used, group)
    if not openers or not processes.is_main():
        yield reporter
        return
    logged = _Logged(reporter, openers)
    try:
        yield logged
    finally:
        logged.close()


class _Logged:
    """Tells another reporter, and then the loggers; one that fails is left out from then on."""

    def __init__(self, reporter: "Reporter", openers: Mapping[str, Callable[[int], Logger]]) -> None:
        self._reporter, self._openers = reporter, openers
        self._loggers: dict[str, Logger] = {}

    def start(self, step: int, total_steps: int) -> None:
        self._reporter.start(step, total_steps)
        for name, opener in self._openers.items():
            with self._without_it_on_failure(name):
                self._loggers[name] = opener(step)

    def record(self, record: dict[str, Any]) -> None:
        self._reporter.record(record)
        for name, logger in list(self._loggers.items()):
            with self._without_it_on_failure(name):
                logger.write(record)

    def notice(self, text: str) -> None:
        self._reporter.notice(text)

    def close(self) -> None:
        for name, logger in list(self._loggers.items()):
            with self._without_it_on_failure(name):
                logger.close()

    @contextlib.contextmanager
    def _without_it_on_failure(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a tool to watch with may fail in any way, and must not end a run
            self._loggers.pop(name, None)
            self._reporter.notice(f"logging.{name}: {_reason(error)}; the run goes on without it")


class TensorBoard:
    """Event files beside metrics.jsonl, so that TensorBoard names a run as its directory is named.

    Written at once and in this thread: tensorboardX's own writer has a thread and a queue, which loses what a kill
    finds in it, and waits forever for a thread that died of a full disk.
    """

    def __init__(self, directory: RunDirectory, used: settings.Settings, step: int) -> None:
        """Goes on after `step`: what an earlier start logged of later steps, TensorBoard then forgets."""
        from tensorboardX import summary

        before = any(directory.path.glob(EVENTS))
        self._writer = _EventFile(directory.path)
        if before:
            self._writer.forget(after=step)
        flat = _flat(used)
        for content in (*summary.hparams(flat, {"eval/top1": None}), summary.text("settings", _as_table(flat))):
            self._writer.add(content, 0)
        for record in () if before else directory.read_metrics():  # logging may begin in the middle of a run
            self._add(record)
        self._writer.flush()

    def write(self, record: Record) -> None:
        self._add(record)
        self._writer.flush()

    def _add(self, record: Record) -> None:
        from tensorboardX import summary

        for name, value in _curves(record).items():
            self._writer.add(summary.scalar(name, value), record["step"])

    def close(self) -> None:
        self._writer.close()


class _EventFile:
    """A new file of TensorBoard's events in a folder."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2

        suffix = f".{os.getpid()}.{time.time_ns()}"  # two starts within a second have a file each
        self._proto, self._writer = event_pb2, event_file_writer.EventsWriter(str(folder / "events"), suffix)
        (self._path,) = folder.glob(f"{EVENTS}{suffix}")

    def add(self, content: Any, step: int) -> None:
        self._writer.write_event(self._proto.Event(wall_time=time.time(), step=step, summary=content))

    def forget(self, *, after: int) -> None:
        start = self._proto.SessionLog(status=self._proto.SessionLog.START)
        self._writer.write_event(self._proto.Event(wall_time=time.time(), step=after + 1, session_log=start))

    def flush(self) -> None:
        self._writer.flush()
        storage.saved(self._path, lazily=True)

    def close(self) -> None:
        self._writer.close()
        storage.saved(self._path)


class WeightsAndBiases:
    """A run of a project, the same one at every start of ours: its name there is kept in wandb.txt.

    A start that goes on writes again what did not arrive before: the tool loses its newest lines when it is killed.
    Offline that is everything, so the newest folder alone is the whole run. `step` is a column: the tool's own counter
    only ever rises.
    """

    def __init__(self, directory: RunDirectory, used: settings.Settings, group: str) -> None:
        self._run = _begin(used.logging.wandb, directory.path / ID, directory.path.name, group, _flat(used))
        self._run.define_metric("*", step_metric="step")
        arrived = self._run.summary.get("step", 0)  # what the server has of it; nothing of a new run, or offline
        for record in directory.read_metrics():
            if record["step"] >= arrived:
                self.write(record)

    def write(self, record: Record) -> None:
        self._run.log({"step": record["step"], **_curves(record)})

    def close(self) -> None:
        self._run.finish()


def _begin(project: str, id_file: Path, name: str, group: str, config: Mapping[str, Any]) -> Any:
    """A run of the project; offline where nobody is logged in, instead of a question that nobody answers."""
    import wandb

    identifier = id_file.read_text(encoding="utf-8").strip() if id_file.is_file() else secrets.token_hex(8)
    mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
    quiet = wandb.Settings(
        silent=True, console="off", x_disable_stats=True, init_timeout=FINISH_SECONDS, finish_timeout=FINISH_SECONDS
    )
    folder = None if storage.is_remote(id_file) else str(id_file.parent)
    run = wandb.init(
        project=project,
        id=identifier,
        name=name,
        group=group,
        config=dict(config),
        dir=folder,
        resume=None if mode == "offline" else "allow",
        reinit="create_new",
        mode=mode,
        settings=quiet,
    )
    write_text(id_file, f"{identifier}\n")
    return run


def write_comparison(
    wanted: settings.LoggingSettings, comparison: report.Comparison, workdir: Path, notice: Callable[[str], None]
) -> None:
    """Shows the comparison in the tools that its runs are in; failures are notices."""
    writers = {"tensorboard": _comparison_to_tensorboard} if wanted.tensorboard else {}
    if wanted.wandb:
        writers["wandb"] = lambda *given: _comparison_to_wandb(wanted.wandb, *given)
    for name, write in writers.items():
        try:
            write(comparison, workdir)
        except Exception as error:  # noqa: BLE001 - as above
            notice(f"logging.{name}: {_reason(error)}; the comparison is not there")


def _comparison_to_tensorboard(comparison: report.Comparison, workdir: Path) -> None:
    from tensorboardX import summary

    folder = workdir / "comparison"
    folder.mkdir(exist_ok=True)
    for old in folder.glob(EVENTS):
        old.unlink()
        storage.removed(old)
    file = _EventFile(folder)
    file.add(summary.text("comparison", markdown(comparison)), 0)
    file.close()


def _comparison_to_wandb(project: str, comparison: report.Comparison, workdir: Path) -> None:
    import wandb

    group = f"{comparison.experiment} on {comparison.preset}"
    run = _begin(project, workdir / ID, "comparison", group, {})
    rows = [[column.text(row) for column in SHOWN] for row in comparison.rows]
    run.log({"comparison": wandb.Table(columns=[column.title for column in SHOWN], data=rows)})
    run.finish()


def _curves(record: Record) -> dict[str, float]:
    """The numbers of a line by the names of their curves: "train/loss"."""
    named = {f"{record['split']}/{name}": x for name, x in record.items() if name not in NOT_CURVES}
    return {name: x for name, x in named.items() if isinstance(x, int | float)}  # None: not finite, or not known


def _flat(used: settings.Settings) -> dict[str, Any]:
    """The settings that decide the run's result, by dotted name."""
    flat = nested.flatten(dataclasses.asdict(used), ".")
    flat = {name: x for name, x in flat.items() if name not in settings.PLACES}
    return {name: str(x) if isinstance(x, tuple) else x for name, x in flat.items()}


def _as_table(flat: Mapping[str, Any]) -> str:
    return "\n".join(["| setting | value |", "|---|---|", *(f"| {name} | {x} |" for name, x in flat.items())])


def _reason(error: Exception) -> str:
    lines: Sequence[str] = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
