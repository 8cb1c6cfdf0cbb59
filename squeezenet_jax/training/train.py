"""One run from its start to its verdict: it resumes, logs, judges itself and can be stopped at any step.

This is the last file of the science; `sweep.py` runs many of these and `report/` compares them. How a batch is read, a
state saved or a stop noticed is in `run.py`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from squeezenet_jax.data import labels, sources
from squeezenet_jax.data.batches import TrainBatches
from squeezenet_jax.runs.checkpoint import Checkpoints
from squeezenet_jax.runs.directory import RunDirectory, whole_steps
from squeezenet_jax.settings import Settings
from squeezenet_jax.system import devices, processes
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.system.fields import require
from squeezenet_jax.training.compilation import compile_steps
from squeezenet_jax.training.compression import Constraint
from squeezenet_jax.training.monitor import Monitor, Reporter
from squeezenet_jax.training.run import (
    Ended,
    Run,
    build_watchdog,
    is_evaluated,
    open_loader,
    read,
    restore,
    write_compressed,
)
from squeezenet_jax.training.steps import LSUV_IMAGES, Steps, init_state
from squeezenet_jax.weights import transfer
from squeezenet_jax.weights.formats.compressed import MAX_TOTAL
from squeezenet_jax.weights.formats.sqz.contexts import MAX_WEIGHTS


class Schedule(NamedTuple):
    """What happens after which step of a run, steps being counted from 1."""

    total_steps: int
    eval_every: int
    save_every: int

    @classmethod
    def of(cls, settings: Settings, steps_per_epoch: float) -> "Schedule":
        train = settings.train
        total_steps, eval_every = (
            whole_steps(epochs, steps_per_epoch) for epochs in (train.epochs, train.eval_every_epochs)
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
    sizes = {"batch_size": (train.batch_size, train.accumulation_steps), "eval_batch_size": (train.eval_batch_size, 1)}
    devices.check_batch_sizes({f"train.{field}": size for field, size in sizes.items()}, mesh)
    if settings.model.frozen:  # asked here and not of `Settings`, which also stand for the runs that were trained so
        for name in ("prune", "share"):
            allowed = f"none with model.freeze {settings.model.freeze}, for it changes weights that are frozen"
            require(f"compress.{name}", value := getattr(settings.compress, name), value == "none", allowed)
    if settings.compress.share != "none":
        weights = {layer.name: layer.params - layer.shape[-1] for layer in settings.trace() if layer.params}
        for what, size, most in (
            *((name, size, MAX_WEIGHTS) for name, size in weights.items()),
            ("the network", sum(weights.values()), MAX_TOTAL),
        ):
            if size > most:
                raise UserError(
                    f"compress.share: {settings.compress.share} is not allowed; {what} has {size:,} weights, and of a "
                    f"{'layer' if what in weights else 'network'} a compressed file holds at most {most:,}"
                )
    if settings.model.weights:
        transfer.initial_params(settings.model, settings.data)
    for field in ("train_split", "eval_split"):
        sources.load(settings.data, field)
    if settings.model.weights:
        transfer.check_unseen(settings.model, settings.data)


def origin(settings: Settings) -> dict[str, str] | None:
    """Where the weights that the run starts from come from, their SHA-256 included; None for a start from scratch."""
    return dict(transfer.load(settings.model).provenance) if settings.model.weights else None


def train(settings: Settings, directory: RunDirectory, reporter: Reporter, should_stop: Callable[[], bool]) -> str:
    """Trains one run to its end, from its newest checkpoint if it has one, and returns its status.

    "done"; "stalled": trained to the end without leaving ln(K); "diverged": the loss was not finite; "preempted":
    `should_stop` became true, and a checkpoint of that step was written. It is asked after each step and before each
    batch of an evaluation; one that was cut short is made when the run is resumed.
    """
    memory = devices.PeakMemory()
    check(settings)
    mesh = devices.data_mesh()
    batches, eval_batches = read(settings, mesh)
    schedule = Schedule.of(settings, batches.steps_per_epoch)
    checkpoints = Checkpoints(directory.path / "checkpoints", keep=settings.train.keep_checkpoints)
    with (
        build_watchdog(settings, directory, reporter).watching() as watchdog,
        open_loader(settings, batches, eval_batches, directory, reporter) as loader,
    ):
        watchdog.phase("compilation")
        with devices.compiled_once(dataclasses.replace(settings, seed=0)):
            steps = compile_for(settings, batches.steps_per_epoch, mesh)
            key = devices.run_key(settings.seed, mesh)

            watchdog.phase("the start: reading a checkpoint, or initialisation")
            state = restore(checkpoints, steps.like, reporter, mesh)
            if state is None:
                first = TrainBatches(batches.source, min(batches.batch_size, LSUV_IMAGES), settings.seed).batch_at(0)
                state = init_state(settings, steps, first["image"], key, mesh)
        smoothing, num_classes = settings.optimizer.label_smoothing, settings.data.num_classes
        entropy = labels.entropy(batches.source, smoothing=smoothing, num_classes=num_classes)
        monitor = Monitor(
            settings, directory, reporter, batches.steps_per_epoch, lambda: loader.waited, memory, entropy
        )
        run = Run(
            state=state,
            key=key,
            steps=steps,
            mesh=mesh,
            loader=loader,
            batches=batches,
            eval_batches=eval_batches,
            directory=directory,
            checkpoints=checkpoints,
            monitor=monitor,
            watchdog=watchdog,
            constraint=Constraint(settings.compress, schedule.total_steps) if settings.compress.active else None,
            should_stop=should_stop,
        )
        directory.truncate_metrics(after=run.step)
        cut_short = run.step > 0 and schedule.evaluates(run.step) and not is_evaluated(directory, run.step)
        reporter.start(run.step, schedule.total_steps)
        try:
            with jax.transfer_guard("disallow"):  # nothing crosses between host and devices unasked
                loop(run, schedule, cut_short)
        except Ended as end:
            return end.status
        if settings.compress.share != "none":
            write_compressed(directory)
    return "stalled" if processes.from_main(monitor.stalled) else "done"


def compile_ahead(settings: Settings, steps_per_epoch: float) -> None:
    """Compiles all that a run needs before its first step, for the cache on the disk. Reads no images."""
    data, mesh = settings.data, devices.data_mesh()
    steps = compile_for(settings, steps_per_epoch, mesh)
    shape = (min(settings.train.batch_size, LSUV_IMAGES), data.image_size, data.image_size, data.channels)
    init_state(
        settings, steps, np.random.default_rng(0).integers(0, 256, shape, np.uint8), devices.run_key(0, mesh), mesh
    )


def compile_for(settings: Settings, steps_per_epoch: float, mesh: Mesh) -> Steps:
    """The programs of a run, which all seeds of its setting share."""
    total_steps = Schedule.of(settings, steps_per_epoch).total_steps
    return compile_steps(dataclasses.replace(settings, seed=0), total_steps, steps_per_epoch, mesh)


def loop(run: Run, schedule: Schedule, cut_short: bool) -> None:
    """Takes the steps that are left, after the evaluation of the step that the run is at if that was `cut_short`.

    A step's checkpoint comes before its evaluation: whatever ends the evaluation costs no step.
    """
    if cut_short:
        run.evaluate(last=run.step == schedule.total_steps)
        run.monitor.restart_clock()
    for batch in run.stream(schedule.total_steps):
        run.take_step(batch)
        stop, saves, evaluates = run.asked_to_stop(), schedule.saves(run.step), schedule.evaluates(run.step)
        if stop or saves or evaluates:
            run.settle()
            if stop or saves:
                run.save()
            if stop:
                raise Ended("preempted")
            if evaluates:
                run.evaluate(last=run.step == schedule.total_steps)
            run.monitor.restart_clock()
