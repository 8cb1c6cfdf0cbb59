"""One run: exact evaluation, and the loop that resumes, logs, judges itself and can be stopped at any step.

This is the last file of the science; `sweep.py` runs many of these and `report/` compares them.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from squeezenet_jax.data import sources
from squeezenet_jax.data.batches import Batch, EvalBatches, TrainBatches, in_parts
from squeezenet_jax.data.loader import Loader, parallelism
from squeezenet_jax.runs.checkpoint import Checkpoints
from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.settings import Settings
from squeezenet_jax.system import devices, processes
from squeezenet_jax.system.watchdog import Watchdog
from squeezenet_jax.training import objective
from squeezenet_jax.training.monitor import Monitor, Reporter
from squeezenet_jax.training.steps import LSUV_IMAGES, Steps, TrainState, compile_steps, init_state
from squeezenet_jax.weights import transfer


class Schedule(NamedTuple):
    """What happens after which step of a run, steps being counted from 1."""

    total_steps: int
    eval_every: int
    save_every: int

    @classmethod
    def of(cls, settings: Settings, steps_per_epoch: float) -> "Schedule":
        train = settings.train
        total_steps, eval_every = (
            max(round(epochs * steps_per_epoch), 1) for epochs in (train.epochs, train.eval_every_epochs)
        )
        return cls(total_steps, eval_every, train.checkpoint_every_steps)

    def evaluates(self, step: int) -> bool:
        """At the end; and regularly, but not just before the end, where a rounded epoch would bring two in a row."""
        left = self.total_steps - step
        return left == 0 or (step % self.eval_every == 0 and 2 * left >= self.eval_every)

    def saves(self, step: int) -> bool:
        return step % self.save_every == 0 or step == self.total_steps


def check(settings: Settings) -> None:
    """Raises `UserError` where the run cannot start on these devices, from its weights or with its data."""
    train, mesh = settings.train, devices.data_mesh()
    devices.check_batch_size("train.batch_size", train.batch_size, mesh, train.accumulation_steps)
    devices.check_batch_size("train.eval_batch_size", train.eval_batch_size, mesh)
    if settings.model.weights:
        transfer.initial_params(settings.model, settings.data)
    for field in ("train_split", "eval_split"):
        sources.load(settings.data, field)


def origin(settings: Settings) -> dict[str, str] | None:
    """Where the weights that the run starts from come from, their SHA-256 included; None for a start from scratch."""
    return dict(transfer.load(settings.model).provenance) if settings.model.weights else None


class _Stopped(Exception):
    """A stop was asked for in the middle of an evaluation."""


def train(settings: Settings, directory: RunDirectory, reporter: Reporter, should_stop: Callable[[], bool]) -> str:
    """Trains one run to its end, from its newest checkpoint if it has one, and returns its status.

    "done"; "stalled": trained to the end without leaving ln(K); "diverged": the loss was not finite; "preempted":
    `should_stop` became true, and a checkpoint of that step was written. It is asked after each step and before each
    batch of an evaluation; one that was cut short is made when the run is resumed.
    """
    check(settings)
    mesh = devices.data_mesh()
    batches, eval_batches = read(settings, mesh)
    processes.check_same("examples to train on and to evaluate", [len(batches.source), len(eval_batches.source)])
    schedule = Schedule.of(settings, batches.steps_per_epoch)
    checkpoints = Checkpoints(directory.path / "checkpoints", keep=settings.train.keep_checkpoints)

    def on_hang(message: str) -> None:
        reporter.notice(f"HUNG: {message}")
        directory.write_status("hung", message)

    watchdog = Watchdog(60 * settings.train.hang_minutes, on_hang, directory.path / "hang.txt")
    in_memory = all(isinstance(source, sources.InMemory) for source in (batches.source, eval_batches.source))
    workers = None if in_memory else settings.data.workers
    makers = {"train": in_parts(batches, parallelism(workers)), "eval": in_parts(eval_batches, parallelism(workers))}
    with watchdog.watching(), Loader(makers, workers, reporter.notice, directory.add_unreadable) as loader:
        if left_out := sources.left_out(settings.data):
            directory.add_unreadable(*left_out)
            reporter.notice(f"left out, no images by their place: {len(left_out):,}, the first: {left_out[0]}")
        watchdog.phase("compilation")
        comparable = dataclasses.replace(settings, seed=0)
        steps = compile_steps(comparable, schedule.total_steps, batches.steps_per_epoch, mesh)
        key = devices.run_key(settings.seed, mesh)
        watchdog.phase("the start: reading a checkpoint, or initialisation")
        state = restore(checkpoints, steps, reporter, mesh)
        if state is None:
            first = TrainBatches(batches.source, min(batches.batch_size, LSUV_IMAGES), settings.seed).batch_at(0)
            state = init_state(settings, steps, first["image"], key, mesh)
        start = int(state.step)
        directory.truncate_metrics(after=start)
        evaluated = [record["step"] for record in directory.read_metrics() if record["split"] == "eval"]
        evaluation_missing = start > 0 and schedule.evaluates(start) and not processes.from_main(start in evaluated)
        reporter.start(start, schedule.total_steps)
        monitor = Monitor(settings, directory, reporter, batches.steps_per_epoch, lambda: loader.waited)

        def save(step: int, state: TrainState) -> None:
            watchdog.phase(f"the checkpoint of step {step}")
            if processes.is_main():
                checkpoints.save(step, state)

        def watched_eval_batches(step: int) -> Iterator[Batch]:
            for number, batch in enumerate(loader.stream("eval", range(len(eval_batches)))):
                watchdog.phase(f"batch {number} of the evaluation after step {step}")
                if processes.should_stop(should_stop()):
                    raise _Stopped
                yield batch

        def write_evaluation(step: int, state: TrainState) -> str | None:
            """Returns the run's status where it ends there. What was trained is saved before whatever ends it."""
            try:
                result = evaluate(steps, state.params, watched_eval_batches(step), mesh)
            except _Stopped:
                save(step, state)
                return "preempted"
            except Exception:
                save(step, state)
                raise
            if not math.isfinite(result["loss"]):
                return "diverged"
            monitor.write({"split": "eval", "step": step, "epoch": step / batches.steps_per_epoch} | result)
            return None

        stream, pace = loader.stream("train", range(start, schedule.total_steps)), devices.Pace()
        with jax.transfer_guard("disallow"):
            if evaluation_missing:
                if ended := write_evaluation(start, state):
                    return ended
                monitor.restart_clock()
            for step in range(start + 1, schedule.total_steps + 1):
                watchdog.phase(f"reading the batch of step {step}")
                try:
                    batch = next(stream)
                except Exception:  # whatever ends the data must not cost the steps that were taken
                    monitor.flush()
                    save(step - 1, state)
                    raise
                watchdog.phase(f"step {step}")
                state, tally = steps.train(state, devices.put_batch(batch, mesh), key)
                pace.add(tally)
                monitor.add(step, tally)
                if monitor.diverged:
                    return "diverged"
                stop = processes.should_stop(should_stop())
                if schedule.evaluates(step) or schedule.saves(step) or stop:
                    monitor.flush()
                    if monitor.diverged:
                        return "diverged"
                    if stop or schedule.saves(step):
                        save(step, state)
                    if stop:
                        return "preempted"
                    if schedule.evaluates(step) and (ended := write_evaluation(step, state)):
                        return ended
                    monitor.restart_clock()
    return "stalled" if processes.from_main(monitor.stalled) else "done"


def read(settings: Settings, mesh: Mesh) -> tuple[TrainBatches, EvalBatches]:
    """The batches of a run, of each the part that this process's devices compute."""
    train, data = settings.train, settings.data
    rows, eval_rows = (devices.rows(size, mesh) for size in (train.batch_size, train.eval_batch_size))
    return (
        TrainBatches(sources.load(data, "train_split"), train.batch_size, settings.seed, rows),
        EvalBatches(sources.load(data, "eval_split"), train.eval_batch_size, eval_rows),
    )


def restore(checkpoints: Checkpoints, steps: Steps, reporter: Reporter, mesh: Mesh) -> TrainState | None:
    """The newest state of a run on all devices; None where there is none. The main process reads it for all."""
    like = steps.like
    found = checkpoints.restore_newest(like, reporter.notice) if processes.is_main() else None
    if not processes.from_main(found is not None):
        return None
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    state: TrainState = devices.replicate(processes.tree_from_main(found or blank), mesh)
    return state


def evaluate(steps: Steps, params: Any, batches: Iterable[Batch], mesh: Mesh) -> dict[str, float]:
    """Exact mean loss, top-1 and top-5 over a whole split: every example counts once, and one division at the end."""
    tallies, pace = [], devices.Pace()
    for batch in batches:
        tallies.append(steps.eval(params, devices.put_batch(batch, mesh)))
        pace.add(tallies[-1])
    return objective.means(objective.total(tallies))
