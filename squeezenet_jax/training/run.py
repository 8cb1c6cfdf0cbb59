"""A run under way: what `train()` moves on, and the plumbing that feeds, watches and keeps it.

Read this only to change how a run is read, saved or stopped; `train.py` says what happens when.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from squeezenet_jax import weights
from squeezenet_jax.data import sources
from squeezenet_jax.data.batches import Batch, EvalBatches, TrainBatches, in_parts
from squeezenet_jax.data.loader import Loader, parallelism
from squeezenet_jax.runs import predictions
from squeezenet_jax.runs.checkpoint import Checkpoints
from squeezenet_jax.runs.directory import COMPRESSED, RunDirectory
from squeezenet_jax.settings import Settings
from squeezenet_jax.system import devices, processes
from squeezenet_jax.system.watchdog import Watchdog
from squeezenet_jax.training import objective
from squeezenet_jax.training.compression import Constraint
from squeezenet_jax.training.monitor import Monitor, Reporter
from squeezenet_jax.training.steps import Steps, TrainState
from squeezenet_jax.weights.formats import run_directory


class Ended(Exception):
    """The run ends early, with this status ("diverged" or "preempted")."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


@dataclasses.dataclass
class Run:
    """The state and all that acts on it. Methods raise `Ended` where the run ends before its last step."""

    state: TrainState
    key: jax.Array
    steps: Steps
    mesh: Mesh
    loader: Loader
    batches: TrainBatches
    eval_batches: EvalBatches
    directory: RunDirectory
    checkpoints: Checkpoints
    monitor: Monitor
    watchdog: Watchdog
    constraint: Constraint | None
    should_stop: Callable[[], bool]

    def __post_init__(self) -> None:
        self.step = int(self.state.step)  # counted here from now on: to read the state's is to wait for it
        self._pace = devices.Pace()

    def stream(self, total_steps: int) -> Iterator[Batch]:
        """The batches of the steps that are left, each read when the step before it has been dispatched."""
        stream = self.loader.stream("train", range(self.step, total_steps))
        for step in range(self.step + 1, total_steps + 1):
            self.watchdog.phase(f"reading the batch of step {step}")
            with self._saved_whatever_ends_it():
                batch = next(stream)
            yield batch

    def take_step(self, batch: Batch) -> None:
        """Dispatches one step; does not wait for it."""
        self.watchdog.phase(f"step {self.step + 1}")
        if self.constraint and self.constraint.changes(self.step):
            self._change_codes(self.constraint)
        self.state, tally = self.steps.train(self.state, devices.put_batch(batch, self.mesh), self.key)
        self.step += 1
        self._pace.add(tally)
        self.monitor.add(self.step, tally)
        self._check_finite()

    def _change_codes(self, constraint: Constraint) -> None:
        params, codes = constraint.change(self.step, *jax.device_get((self.state.params, self.state.codes)))
        with jax.transfer_guard("allow"):
            changed = devices.replicate({"params": params, "codes": codes}, self.mesh)
        self.state = dataclasses.replace(self.state, **changed)

    def asked_to_stop(self) -> bool:
        return processes.should_stop(self.should_stop())

    def settle(self) -> None:
        """Waits for all that was dispatched, and writes its metrics."""
        self.monitor.flush()
        self._check_finite()

    def save(self) -> None:
        self.watchdog.phase(f"the checkpoint of step {self.step}")
        if processes.is_main():
            self.checkpoints.save(self.step, self.state)

    def evaluate(self, last: bool) -> None:
        """Evaluates the state on the whole split and writes the result; of the `last` one also every outcome.

        The outcomes come first: a run that is evaluated has them, whatever interrupts it.
        """
        outcomes: list[objective.Outcomes] = []

        def tally_of(batch: Batch) -> objective.Tally:
            tally, outcome = self.steps.eval(self.state.used, devices.put_batch(batch, self.mesh))
            if last:
                outcomes.append(outcome)
            return tally

        with self._saved_whatever_ends_it():
            result = objective.evaluate(tally_of, self._eval_stream())
        if not math.isfinite(result["loss"]):
            raise Ended("diverged")
        if last:
            predictions.save(self.directory.path, predictions.join(jax.device_get(outcomes)))
        epoch = self.step / self.batches.steps_per_epoch
        self.monitor.write({"split": "eval", "step": self.step, "epoch": epoch} | result)

    def _eval_stream(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.loader.stream("eval", range(len(self.eval_batches)))):
            self.watchdog.phase(f"batch {number} of the evaluation after step {self.step}")
            if self.asked_to_stop():
                raise Ended("preempted")
            yield batch

    def _check_finite(self) -> None:
        if self.monitor.diverged:
            raise Ended("diverged")

    @contextlib.contextmanager
    def _saved_whatever_ends_it(self) -> Iterator[None]:
        """A stop or a failure in there must not cost the steps that were taken."""
        try:
            yield
        except Exception:
            self.monitor.flush()
            self.save()
            raise


def read(settings: Settings, mesh: Mesh) -> tuple[TrainBatches, EvalBatches]:
    """The batches of a run, of each the part that this process's devices compute."""
    train, data = settings.train, settings.data
    rows, eval_rows = (devices.rows(size, mesh) for size in (train.batch_size, train.eval_batch_size))
    batches = TrainBatches(sources.load(data, "train_split"), train.batch_size, settings.seed, rows)
    eval_batches = EvalBatches(sources.load(data, "eval_split"), train.eval_batch_size, eval_rows)
    processes.check_same("examples to train on and to evaluate", [len(batches.source), len(eval_batches.source)])
    return batches, eval_batches


def open_loader(
    settings: Settings,
    batches: TrainBatches,
    eval_batches: EvalBatches,
    directory: RunDirectory,
    reporter: Reporter,
) -> Loader:
    """Makes the batches "train" and "eval"; images that cannot be read are reported, and their names kept."""
    in_memory = all(isinstance(source, sources.InMemory) for source in (batches.source, eval_batches.source))
    workers = None if in_memory else settings.data.workers
    if left_out := sources.left_out(settings.data):
        directory.add_unreadable(*left_out)
        reporter.notice(f"left out, no images by their place: {len(left_out):,}, the first: {left_out[0]}")
    makers = {"train": in_parts(batches, parallelism(workers)), "eval": in_parts(eval_batches, parallelism(workers))}
    return Loader(makers, workers, reporter.notice, directory.add_unreadable)


def build_watchdog(settings: Settings, directory: RunDirectory, reporter: Reporter) -> Watchdog:
    """Ends the process, with the status "hung", when the run makes no progress for `train.hang_minutes`."""

    def on_hang(message: str) -> None:
        reporter.notice(f"HUNG: {message}")
        directory.write_status("hung", message)

    return Watchdog(60 * settings.train.hang_minutes, on_hang, directory.path / "hang.txt")


def restore(checkpoints: Checkpoints, like: TrainState, reporter: Reporter, mesh: Mesh) -> TrainState | None:
    """The newest state of a run on all devices; None where there is none. The main process reads it for all."""
    found = checkpoints.restore_newest(like, reporter.notice) if processes.is_main() else None
    if not processes.from_main(found is not None):
        return None
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    state: TrainState = devices.replicate(processes.tree_from_main(found or blank), mesh)
    return state


def is_evaluated(directory: RunDirectory, step: int) -> bool:
    """Whether the metrics have the evaluation after `step`, which a stop may have cut short."""
    found = any(record["split"] == "eval" and record["step"] == step for record in directory.read_metrics())
    return bool(processes.from_main(found))


def write_compressed(directory: RunDirectory) -> None:
    """Writes the run's newest weights, which are shared, as the compressed file whose bytes the report has."""
    if processes.is_main():
        network = weights.load(directory.path)
        # That the run has ended is not written yet.
        provenance = {name: x for name, x in network.provenance.items() if name != run_directory.STATUS}
        weights.save(directory.path / COMPRESSED, dataclasses.replace(network, provenance=provenance))
