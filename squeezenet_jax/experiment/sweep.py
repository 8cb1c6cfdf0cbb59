"""From an experiment file to finished runs: plan the sweep, run what is missing, compare what is there.

A run's directory is `<workdir>/<its swept values>`, so running the same command again skips what is done and resumes
what is not. Planning imports no jax.
"""

import contextlib
import dataclasses
import importlib.util
import os
import statistics
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from squeezenet_jax import report, settings
from squeezenet_jax.data import catalog
from squeezenet_jax.experiment.progress import Progress
from squeezenet_jax.network import architecture
from squeezenet_jax.runs.directory import FINISHED, RunDirectory, read_json, write_json, write_text
from squeezenet_jax.system import nested, processes
from squeezenet_jax.system.errors import UserError, check_choice, unknown

MANIFEST = "experiment.json"  # in a workdir: which experiment, preset and configuration its runs belong to


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    name: str  # "bypass=simple,seed=1"
    setting: str  # "bypass=simple": what the seeds of a setting share
    overrides: Mapping[str, Any]
    settings: settings.Settings

    @property
    def cost(self) -> tuple[int, int]:
        """(parameters, MACs of one image)"""
        return architecture.count(self.settings.trace())


@dataclasses.dataclass(frozen=True)
class Plan:
    experiment: str
    preset: str
    baseline: str  # the setting that the others are compared with
    config: Mapping[str, Any]  # flat, without what is swept
    runs: tuple[PlannedRun, ...]

    def only(self, selection: str) -> "Plan":
        """The part whose swept values are in `selection`, such as "bypass=simple,seed=1,seed=2"."""
        wanted: dict[str, set[str]] = {}
        values = [dict(part.split("=") for part in run.name.split(",")) for run in self.runs]
        for part in selection.split(","):
            key, _, value = part.strip().partition("=")
            if key not in values[0]:
                raise unknown("--only", key, values[0])
            allowed = list(dict.fromkeys(run[key] for run in values))
            if value not in allowed:
                raise unknown(f"--only {key}", value, allowed)
            wanted.setdefault(key, set()).add(value)
        kept = [
            planned
            for planned, run in zip(self.runs, values, strict=True)
            if all(run[key] in allowed for key, allowed in wanted.items())
        ]
        if not kept:
            raise UserError(f"--only: no run has {selection}")
        return dataclasses.replace(self, runs=tuple(kept))


def load_experiment(path: str) -> ModuleType:
    """Imports an experiment file; raises `UserError` where there is none or it lacks what an experiment has."""
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        raise unknown("--config", path, sorted(str(p) for p in Path("experiments").glob("*.py") if p.stem != "base"))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("get_config", "sweep", "BASELINE"):
        if not hasattr(module, name):
            raise UserError(f"--config: {path} is not an experiment: it has no {name}")
    return module


def plan(experiment: ModuleType, preset: str, config: Mapping[str, Any], overridden: Iterable[str]) -> Plan:
    """Expands an experiment's sweep over a config (nested, the command line's values in it) and checks every run."""
    base = flatten(config)
    for key, what in getattr(experiment, "REQUIRED", {}).items():
        if not base[key]:
            raise UserError(f"{key}: {experiment.__name__} needs {what}; set --config.{key}=...")
    base = catalog.resolve(base)
    sweep: list[dict[str, Any]] = list(experiment.sweep())
    swept = list(sweep[0])
    for key in swept:
        if key not in base:
            raise unknown(f"sweep() of {experiment.__name__}", key, base)
        if key in overridden:
            part = f"--only {_short(key)}=... runs a part of the sweep"
            raise UserError(f"{key}: can't be set, {experiment.__name__} sweeps it; {part}")
    runs = []
    for overrides in sweep:
        if list(overrides) != swept:
            raise UserError(f"sweep() of {experiment.__name__}: every run must set {', '.join(swept)}, in this order")
        run_settings = settings.from_config(unflatten(base | overrides))
        catalog.check(run_settings.data)
        setting = _name({key: value for key, value in overrides.items() if key != "seed"})
        runs.append(PlannedRun(_name(overrides), setting, overrides, run_settings))
    baseline, names = _name(experiment.BASELINE), [run.name for run in runs]
    check_choice(f"BASELINE of {experiment.__name__}", baseline, list(dict.fromkeys(run.setting for run in runs)))
    if len(set(names)) < len(names) or any("/" in name or name.count("=") != len(swept) for name in names):
        raise UserError(f"sweep() of {experiment.__name__}: its values do not give each run a name of its own")
    fixed = {key: value for key, value in base.items() if key not in swept}
    return Plan(experiment.__name__, preset, baseline, fixed, tuple(runs))


def run(plan: Plan, workdir: Path, progress: Progress, should_stop: Callable[[], bool]) -> list[str]:
    """Runs what is not finished, one after the other, and returns every run's status.

    A run that another process is at is left to it: starts that share a workdir share the work. Where several processes
    work on each run together, the main one's workdir decides what is to be run.
    """
    directories = {planned.name: RunDirectory(workdir / planned.name) for planned in plan.runs}
    unfinished = [name for name, directory in directories.items() if directory.status not in FINISHED]
    processes.check_same("the runs", [planned.name for planned in plan.runs])
    config = {key: value for key, value in plan.config.items() if key not in settings.PLACES}
    processes.check_same("the configuration", _as_json(config))
    unfinished = processes.from_main(unfinished)
    if unfinished:
        from squeezenet_jax.system import devices
        from squeezenet_jax.training import train  # jax, only now

        devices.keep_compiled_programs()
        for planned in plan.runs:
            if planned.name in unfinished:
                train.check(planned.settings)
    claim(plan, workdir)
    busy, stopped = {}, False
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
            elif processes.from_main(directory.status not in FINISHED):  # another start may have finished it meanwhile
                with progress.run(planned.name, number, len(plan.runs)) as reporter:
                    stopped = _run_one(plan, planned, directory, reporter, should_stop) == "preempted"
    if busy and set(busy) == set(unfinished):
        holders = ", ".join(dict.fromkeys(busy.values()))
        raise UserError(f"--workdir: {workdir}: whatever is not finished there is being run by {holders}")
    statuses = [directory.status for directory in directories.values()]
    return ["preempted" if stopped and status not in FINISHED else status for status in statuses]


def _run_one(
    plan: Plan, planned: PlannedRun, directory: RunDirectory, reporter: Any, should_stop: Callable[[], bool]
) -> str:
    from squeezenet_jax.training import train

    directory.begin(
        {
            "experiment": plan.experiment,
            "preset": plan.preset,
            "overrides": dict(planned.overrides),
            "settings": dataclasses.asdict(planned.settings),
            "init_from": train.origin(planned.settings),
            "dataset": dataclasses.asdict(catalog.info(planned.settings.data.name, planned.settings.data.dir)),
            "command": sys.argv,
        }
    )
    directory.write_status("running")
    try:
        status, message = train.train(planned.settings, directory, reporter, should_stop), ""
    except (UserError, OSError) as error:  # wrong input, or a disk that is full or gone: the others would fail alike
        with contextlib.suppress(OSError):
            directory.write_status("failed", str(error))
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
    """Makes `workdir` this plan's, or checks that it is; raises `UserError`, and writes nothing, where it is not."""
    manifest = {"experiment": plan.experiment, "preset": plan.preset, "config": dict(plan.config)}
    existing = read_json(workdir / MANIFEST)
    if existing is None:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(workdir / MANIFEST, manifest)
        except OSError as error:
            raise UserError(f"--workdir: {workdir} is not writable ({error.strerror})") from None
        return
    here, there = flatten(_as_json(manifest)), flatten(existing)
    # Another place of a folder of images is another dataset.
    places = settings.PLACES - ({"data.dir"} if plan.config.get("data.name") == catalog.FOLDER else set())
    differing = [key for key in here | there if here.get(key) != there.get(key)]
    differing = [key for key in differing if key.removeprefix("config.") not in places]
    if not differing and not os.access(workdir, os.W_OK):
        raise UserError(f"--workdir: {workdir} is not writable")
    if differing:
        differences = "; ".join(
            f"{key.removeprefix('config.')} is {there.get(key)} there, {here.get(key)} here" for key in differing[:5]
        )
        raise UserError(f"--workdir: {workdir} holds other runs: {differences}; choose another --workdir")


def compare(plan: Plan, workdir: Path) -> report.Comparison:
    """Reads the plan's runs back from `workdir` and compares them."""
    runs = [_read_run(planned, RunDirectory(workdir / planned.name)) for planned in plan.runs]
    return report.compare(plan.experiment, plan.preset, plan.baseline, runs)


def _read_run(planned: PlannedRun, directory: RunDirectory) -> report.Run:
    status, metrics = directory.status, directory.read_metrics()
    curves = {name: [record for record in metrics if record["split"] == name] for name in ("train", "eval")}
    final = None
    if status in ("done", "stalled"):
        rates = [record["images_per_second"] for record in curves["train"]]
        final = curves["eval"][-1] | {"images_per_second": statistics.median(rates)}
    params, macs = planned.cost
    return report.Run(
        setting=planned.setting,
        overrides={key: value for key, value in planned.overrides.items() if key != "seed"},
        seed=planned.settings.seed,
        status=status,
        params=params,
        macs=macs,
        final=final,
        train_curve=curves["train"],
        eval_curve=curves["eval"],
    )


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config by its dotted keys."""
    return nested.flatten(config, ".")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return nested.unflatten(flat, ".")


def _as_json(value: Any) -> Any:
    import json

    return json.loads(json.dumps(value))


def _short(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _name(overrides: Mapping[str, Any]) -> str:
    return ",".join(
        f"{_short(key)}={value:g}" if isinstance(value, float) else f"{_short(key)}={value}"
        for key, value in overrides.items()
    )
