"""Runs of a plan: run what is missing, compare what is there.

A run's directory is `<workdir>/<its name>`, so running the same command again skips what is done and resumes what is
not. What its inputs hold (images, weights) is part of what a run is; where they lie and how that is spelled is not.
"""

import contextlib
import dataclasses
import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from squeezenet_jax import report, settings
from squeezenet_jax.data import catalog, fingerprint
from squeezenet_jax.experiment import loggers, results
from squeezenet_jax.experiment.ahead import Ahead
from squeezenet_jax.experiment.planning import Plan, PlannedRun, flatten
from squeezenet_jax.experiment.progress import Progress
from squeezenet_jax.runs.directory import FINISHED, RunDirectory, read_json, write_json, write_text
from squeezenet_jax.system import processes
from squeezenet_jax.system.errors import TryAgain, UserError

# Settings that say where inputs lie; what they hold is compared instead.
SPELLINGS = {*settings.PLACES, "model.init_from"}
MANIFEST = "experiment.json"  # in a workdir: which experiment, preset and configuration its runs belong to
OWN_SEEDS = "the experiment's own"
PLANNED = (
    "baseline",
    "margin",
    "runs",
)  # of what a manifest says, what a later start of the same experiment may plan anew


def run(plan: Plan, workdir: Path, progress: Progress, should_stop: Callable[[], bool]) -> list[str]:
    """Runs what is not finished, one after the other, and returns every run's status.

    A run that another process is at is left to it: starts that share a workdir share the work. Where several processes
    work on each run together, the main one's workdir decides what is to be run.
    """
    directories = {planned.name: RunDirectory(workdir / planned.name) for planned in plan.runs}
    processes.check_same("the runs", [planned.name for planned in plan.runs])
    config = {key: value for key, value in plan.config.items() if key not in settings.PLACES}
    processes.check_same("the configuration", _as_json(config))
    unfinished = processes.from_main(unfinished_runs(plan, workdir))
    if unfinished:
        prepare(plan, unfinished)
    claim(plan, workdir)
    check_inputs(plan, workdir)
    busy, stopped = {}, False
    with contextlib.closing(Ahead()) as ahead:
        for number, planned in enumerate(plan.runs, start=1):
            directory = directories[planned.name]
            if planned.name not in unfinished:
                progress.skip(planned.name, number, len(plan.runs), f"already {directory.status}")
                continue
            stopped = stopped or processes.should_stop(should_stop())
            if stopped:
                continue
            with directory.lock() as holder:
                if holder := processes.from_main(holder):
                    busy[planned.name] = holder
                    progress.skip(planned.name, number, len(plan.runs), f"is being run by {holder}")
                elif processes.from_main(directory.status not in FINISHED):  # another start may have finished it
                    ahead.before(planned.settings, _next_setting(plan.runs[number:], planned.setting, unfinished))
                    with progress.run(planned.name, number, len(plan.runs)) as reporter:
                        stopped = run_one(plan, planned, directory, reporter, should_stop) == "preempted"
    check_not_all_busy(busy, unfinished, workdir)
    statuses = [directory.status for directory in directories.values()]
    return ["preempted" if stopped and status not in FINISHED else status for status in statuses]


def _next_setting(to_come: Sequence[PlannedRun], setting: str, unfinished: Collection[str]) -> settings.Settings | None:
    return next((run.settings for run in to_come if run.setting != setting and run.name in unfinished), None)


def unfinished_runs(plan: Plan, workdir: Path) -> list[str]:
    """Names of the runs that have not come to their end, in the plan's order."""
    return [run.name for run in plan.runs if RunDirectory(workdir / run.name).status not in FINISHED]


def prepare(plan: Plan, names: Collection[str]) -> None:
    """Makes this process ready to train; raises `UserError` where one of these runs cannot start on its devices."""
    from squeezenet_jax.system import devices
    from squeezenet_jax.training import train  # jax, only now

    devices.use_the_usual_numbers()
    devices.keep_compiled_programs()
    for planned in plan.runs:
        if planned.name in names:
            loggers.check(planned.settings.logging)
            train.check(planned.settings)


def check_not_all_busy(busy: Mapping[str, str], unfinished: Collection[str], workdir: Path) -> None:
    """`busy`: run -> who is at it. Raises `UserError` where nothing was left for this start."""
    if busy and set(busy) == set(unfinished):
        holders = ", ".join(dict.fromkeys(busy.values()))
        raise UserError(f"--workdir: {workdir}: whatever is not finished there is being run by {holders}")


def run_one(
    plan: Plan, planned: PlannedRun, directory: RunDirectory, reporter: Any, should_stop: Callable[[], bool]
) -> str:
    """Runs what is planned in its directory, whose lock is held, and returns its status.

    Raises `UserError` and `OSError` for what the sweep's other runs would meet, too: wrong input, or a full disk.
    """
    from squeezenet_jax.data import labels
    from squeezenet_jax.training import train

    distributions = labels.distributions(planned.settings.data)  # before the inputs: it may prepare the images
    inputs = _inputs_if_here(planned.settings.data, planned.settings.model.weights)
    directory.begin(
        {
            "experiment": plan.experiment,
            "preset": plan.preset,
            "overrides": dict(planned.overrides),
            **({"tuning": dict(planned.tuning)} if planned.tuning else {}),
            "settings": dataclasses.asdict(planned.settings),
            "inputs": inputs,
            "init_from": train.origin(planned.settings),
            "dataset": dataclasses.asdict(catalog.info(planned.settings.data.name, planned.settings.data.dir)),
            "labels": distributions,
            "command": sys.argv,
        }
    )
    directory.write_status("running")
    try:
        with loggers.attached(reporter, directory, planned.settings, f"{plan.experiment} on {plan.preset}") as told:
            status, message = train.train(planned.settings, directory, told, should_stop), ""
    except (UserError, OSError) as error:  # wrong input, or a disk that is full or gone: the others would fail alike
        with contextlib.suppress(OSError):
            directory.write_status("failed", str(error))
        raise
    except TryAgain:  # the run goes on where the network, or who has its lease now, lets it
        raise
    except Exception as error:
        write_text(directory.path / "error.txt", traceback.format_exc())
        status, message = "failed", f"{type(error).__name__}: {error}"
        if processes.several():  # the others are in another place; what one of several dies of, all die of
            directory.write_status(status, message)
            raise
    directory.write_status(status, message)
    if status == "failed":
        reporter.notice(f"FAILED: {message.splitlines()[0]} (traceback in {directory.path / 'error.txt'})")
    return status


def claim(plan: Plan, workdir: Path) -> None:
    """Makes `workdir` this plan's, or checks that it is; raises `UserError`, and writes nothing, where it is not.

    The manifest says all that was planned, so that a report can say what is missing without the experiment's file.
    """
    swept = list(plan.runs[0].overrides)
    head: dict[str, Any] = {"experiment": plan.experiment, "preset": plan.preset, "sweep": swept}
    head["seeds"] = plan.asked_seeds or OWN_SEEDS
    manifest = {**head, "config": dict(plan.config), **({"tuning": dict(plan.tuning)} if plan.tuning else {})}
    planned = _as_json({"baseline": plan.baseline, "margin": plan.margin, "runs": _what_differs(plan)})
    existing = read_json(workdir / MANIFEST)
    if existing is not None and bool(existing.get("tuning")) != bool(plan.tuning):
        how = "whose settings share one recipe" if plan.tuning else "of --tune, which this command lacks"
        raise UserError(f"--tune: {workdir} holds runs {how}; choose another --workdir")
    if existing is None:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(workdir / MANIFEST, manifest | planned)
        except OSError as error:
            raise UserError(f"--workdir: {workdir} is not writable ({error.strerror})") from None
        return
    # What is missing there is newer than the workdir, and what was in effect is its default.
    varied = {*swept, *plan.tuning.get("grid", ())}
    defaults = {key: value for key, value in settings.DEFAULTS.items() if key not in varied}
    here, there = (flatten(_as_json(m)) for m in (manifest, {**manifest, "seeds": OWN_SEEDS, "config": defaults}))
    there |= flatten({key: value for key, value in existing.items() if key not in PLANNED})
    differing = [key for key in here | there if here.get(key) != there.get(key)]
    differing = [key for key in differing if key.removeprefix("config.") not in SPELLINGS]
    if not differing and not os.access(workdir, os.W_OK):
        raise UserError(f"--workdir: {workdir} is not writable")
    if differing:
        differences = "; ".join(
            f"{key.removeprefix('config.')} is {there.get(key)} there, {here.get(key)} here" for key in differing[:5]
        )
        raise UserError(f"--workdir: {workdir} holds other runs: {differences}; choose another --workdir")
    if planned != {key: existing.get(key) for key in PLANNED}:  # more seeds, or an older version wrote it
        write_json(workdir / MANIFEST, existing | planned)


def _what_differs(plan: Plan) -> dict[str, dict[str, Any]]:
    """By name, in the order of the sweep: the settings of each planned run that are not those of all."""
    runs = sorted((*plan.runs, *plan.others), key=lambda planned: planned.place)
    flat = {planned.name: flatten(dataclasses.asdict(planned.settings)) for planned in runs}
    return {name: {key: x for key, x in each.items() if key not in plan.config} for name, each in flat.items()}


def check_inputs(plan: Plan, workdir: Path) -> None:
    """Raises `UserError` where a run in `workdir` was begun with other images or weights than there are now.

    Of the whole sweep: those that are not to be run now will be compared with those that are. What is not there now
    cannot be compared: a workdir may have come from another machine.
    """
    for planned in (*plan.runs, *plan.others):
        before = RunDirectory(workdir / planned.name).read_description().get("inputs")
        now = _inputs_if_here(planned.settings.data, planned.settings.model.weights) if before else None
        if before and now:
            here, there = flatten(now), flatten(before)
            for key in here | there:
                if here.get(key) != there.get(key):
                    raise UserError(
                        f"--workdir: {workdir / planned.name} was begun with other inputs: {key} was "
                        f"{there.get(key)}, now it is {here.get(key)}; choose another --workdir"
                    )


def _inputs_if_here(data: settings.DataSettings, weights: str) -> dict[str, Any] | None:
    """`_inputs`; None where they are not there, by now."""
    try:
        return _inputs(data, weights)
    except UserError:
        return None


@functools.lru_cache(maxsize=64)  # a sweep's runs share theirs
def _inputs(data: settings.DataSettings, weights: str) -> dict[str, Any]:
    """What the images and the weights file of a run hold."""
    found: dict[str, Any] = {"data": fingerprint.fingerprint(data)}
    if weights:
        from squeezenet_jax.weights import transfer  # jax

        found["weights"] = transfer.digest(settings.ModelSettings(init_from=weights))
    return found


def compare(plan: Plan, workdir: Path) -> report.Comparison:
    """Reads the plan's runs back from `workdir` and compares them."""
    runs = [
        results.read_run(
            RunDirectory(workdir / planned.name),
            planned.setting,
            {**planned.overrides, **planned.tuning.get("chosen", {})},
            planned.settings,
            planned.cost,
        )
        for planned in plan.runs
    ]
    return report.compare(plan.experiment, plan.preset, plan.baseline, runs, plan.margin / 100)


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
