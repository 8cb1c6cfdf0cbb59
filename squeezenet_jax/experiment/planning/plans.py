"""The sweep of an experiment as runs with their settings, checked. Imports no jax.

A run is named by its swept values, "bypass=simple,seed=1", which is also its directory; what the seeds of a setting
share, "bypass=simple", names the setting. Read next: `sweep.py`, which runs a plan.
"""

import collections
import dataclasses
import inspect
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from squeezenet_jax import settings
from squeezenet_jax.data import catalog
from squeezenet_jax.experiment.planning.files import reason
from squeezenet_jax.experiment.planning.names import (
    SEED,
    check_names,
    means,
    plain,
    run_name,
    short_names,
    split_at_commas,
    text_of,
)
from squeezenet_jax.network.trace import count
from squeezenet_jax.report.comparison import contrasted
from squeezenet_jax.report.statistics.paired import MARGIN
from squeezenet_jax.system import nested
from squeezenet_jax.system.errors import UserError, check_choice, unknown


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    name: str
    setting: str
    overrides: Mapping[str, Any]
    settings: settings.Settings
    place: int = 0  # in its sweep
    tuning: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # where --tune had a part in it: `tuning.py`

    @property
    def cost(self) -> tuple[int, int]:
        """(parameters, MACs of one image)"""
        return count(self.settings.trace())


@dataclasses.dataclass(frozen=True)
class Plan:
    experiment: str
    preset: str
    baseline: str  # the setting that the others are compared with, or the values that it differs in
    config: Mapping[str, Any]  # flat, without what is swept or follows from it
    runs: tuple[PlannedRun, ...]
    others: tuple[PlannedRun, ...] = ()  # of the same sweep, where `runs` is a part of it
    margin: float = MARGIN  # percentage points: the smallest difference that matters
    asked_seeds: str = ""  # what the command line had in place of the experiment's own
    tuning: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # from what each setting's recipe is chosen

    @property
    def seeds(self) -> int:
        """How many each setting has, at least."""
        return min(collections.Counter(run.setting for run in self.runs).values())

    def only(self, selection: str) -> "Plan":
        """The part whose swept values are in `selection`, such as "bypass=simple,seed=1,seed=2"."""
        names = short_names(self.runs[0].overrides)
        wanted: dict[str, list[str]] = {}
        for part in split_at_commas(selection):
            name, _, text = part.partition("=")
            if name not in names:
                raise unknown("--only", name, names)
            values = list(dict.fromkeys(run.overrides[names[name]] for run in self.runs))
            if not any(means(text, value) for value in values):
                raise unknown(f"--only {name}", text, map(text_of, values))
            wanted.setdefault(names[name], []).append(text)
        kept = [
            run
            for run in self.runs
            if all(any(means(text, run.overrides[key]) for text in texts) for key, texts in wanted.items())
        ]
        if not kept:
            raise UserError(f"--only: no run has {selection}")
        return self.part(kept)

    def part(self, kept: Sequence[PlannedRun]) -> "Plan":
        """These of its runs."""
        others = tuple(run for run in self.runs if run not in kept)
        return dataclasses.replace(self, runs=tuple(kept), others=self.others + others)


def plan(
    experiment: ModuleType,
    preset: str,
    config: Mapping[str, Any],
    overridden: Iterable[str],
    recorded: Mapping[str, Any] | None = None,
    seeds: str = "",
) -> Plan:
    """Expands an experiment's sweep over a config (nested, the command line's values in it) and checks every run.

    Args:
      recorded: The flat config that a workdir's runs were planned with, to read them back where their data are gone.
      seeds: In place of the experiment's own: "20" for 0 to 19, "20:40" for 20 to 39.
    """
    base = plain(flatten(config))
    if missing := settings.DEFAULTS.keys() - base.keys():
        raise UserError(
            f"config: {', '.join(sorted(missing))} missing; a group of fields can't be replaced, only its fields"
        )
    rows = _with_seeds(_sweep(experiment, base, recorded), seeds)
    swept = list(rows[0])
    for key, what in getattr(experiment, "REQUIRED", {}).items():
        if key not in swept and not base[key]:
            raise UserError(f"{key}: {experiment.__name__} needs {what}; set --config.{key}=...")
    names = {key: name for name, key in short_names(rows[0]).items()}
    for key in swept:
        if key not in base:
            raise unknown(f"sweep() of {experiment.__name__}", key, base)
        if key in overridden:
            part = f"--only {names[key]}=... runs a part of the sweep"
            raise UserError(f"{key}: can't be set, {experiment.__name__} sweeps it; {part}")
    flat_configs: list[dict[str, Any]] = []
    runs: list[PlannedRun] = []
    for overrides in rows:
        flat = base | overrides
        flat = flat | _resolved(flat, recorded)
        run_settings = settings.from_config(unflatten(flat))
        if recorded is None:
            catalog.check(run_settings.data)
        flat_configs.append(flat)
        setting = run_name(overrides, names, without=(SEED,))
        runs.append(PlannedRun(run_name(overrides, names), setting, overrides, run_settings, len(runs)))
    check_names(f"sweep() of {experiment.__name__}", [run.name for run in runs])
    if recorded is None:
        check_differences("sweep()", runs)
    baseline = _baseline(experiment, runs, names)
    fixed = common(flat_configs, swept)
    return Plan(
        experiment.__name__, preset, baseline, fixed, tuple(runs), margin=_margin(experiment), asked_seeds=seeds
    )


def _sweep(experiment: ModuleType, base: Mapping[str, Any], recorded: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The rows of an experiment's sweep, all with the same keys.

    A sweep whose values depend on the network or the data takes a parameter: the settings before it changes them.
    """
    where = f"sweep() of {experiment.__name__}"
    given = []
    if inspect.signature(experiment.sweep).parameters:
        given = [settings.from_config(unflatten({**base, **_resolved(base, recorded)}))]
    try:
        rows = [plain(dict(row)) for row in experiment.sweep(*given)]
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: gives no mappings of settings ({reason(error)})") from error
    except Exception as error:
        raise UserError(f"{where}: fails ({reason(error)})") from error
    if not rows:
        raise UserError(f"{where}: gives no runs; for a single one it yields an empty mapping, {{}}")
    for row in rows:
        if list(row) != list(rows[0]):
            raise UserError(f"{where}: every run must set {', '.join(rows[0]) or 'nothing'}, in this order")
    return rows


def _with_seeds(rows: list[dict[str, Any]], asked: str) -> list[dict[str, Any]]:
    """Each setting of the sweep with the seeds that were asked for."""
    if not asked:
        return rows
    match = re.fullmatch(r"(?:(\d{1,6}):)?(\d{1,6})", asked)
    seeds = range(int(match[1] or 0), int(match[2])) if match else range(0)
    if not seeds:
        raise UserError(f"--seeds: {asked} is not allowed; 20 stands for seeds 0 to 19, 20:40 for 20 to 39")
    if SEED not in rows[0]:
        raise UserError("--seeds: the sweep has no seeds; its sweep() must yield seed")
    of_setting = {tuple((key, value) for key, value in row.items() if key != SEED): row for row in reversed(rows)}
    return [{**row, SEED: seed} for row in reversed(of_setting.values()) for seed in seeds]


def _baseline(experiment: ModuleType, runs: Sequence[PlannedRun], names: Mapping[str, str]) -> str:
    """The one setting that has the values of BASELINE; where several have them, only the values (`contrasted`)."""
    values = plain(dict(experiment.BASELINE))
    having = {run.setting for run in runs if values.items() <= run.overrides.items()}
    return min(having) if len(having) == 1 else _check_baseline(experiment.__name__, run_name(values, names), runs)


def _resolved(flat: Mapping[str, Any], recorded: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the config leaves to the dataset."""
    if recorded is None:
        return catalog.resolve(flat)
    left_open = ("data.num_classes", "data.eval_split")
    return {key: flat[key] or recorded.get(key, flat[key]) for key in left_open}


def common(flat_configs: Sequence[Mapping[str, Any]], swept: Collection[str]) -> dict[str, Any]:
    """What all runs' settings share, without what is swept."""
    first = flat_configs[0]
    return {key: x for key, x in first.items() if key not in swept and all(flat[key] == x for flat in flat_configs)}


def check_differences(where: str, runs: Sequence[PlannedRun]) -> None:
    """Refuses to compare a run with itself: two whose swept values differ only in what has no effect."""
    seen: dict[Any, str] = {}
    for run in runs:
        effective = tuple(settings.effective(run.settings).items())
        if effective in seen:
            raise UserError(
                f"{where}: {seen[effective]} and {run.name} are the same run: what differs has no effect with the "
                "other settings"
            )
        seen[effective] = run.name


def _check_baseline(experiment: str, baseline: str, runs: Sequence[PlannedRun]) -> str:
    """Every setting must have one that it is compared with."""
    settings = list(dict.fromkeys(run.setting for run in runs))
    for name in settings:
        check_choice(f"BASELINE of {experiment}", contrasted(name, baseline), settings)
    return baseline


def _margin(experiment: ModuleType) -> float:
    """MARGIN of an experiment, in percentage points."""
    margin = getattr(experiment, "MARGIN", MARGIN)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 < margin < 100:
        raise UserError(f"MARGIN of {experiment.__name__}: {margin!r} is not allowed; percentage points, above 0")
    return float(margin)


def changed(before: settings.Settings, values: Mapping[str, Any]) -> settings.Settings:
    """Settings with other values, flat; raises `UserError` where they do not fit."""
    return settings.from_config(unflatten(flatten(dataclasses.asdict(before)) | dict(values)))


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config by its dotted keys."""
    return nested.flatten(config, ".")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return nested.unflatten(flat, ".")
