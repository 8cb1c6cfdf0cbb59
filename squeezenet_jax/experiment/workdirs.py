"""Comparisons of finished workdirs, from what they record: no jax, no data, no experiment file.

Workdirs of one experiment and preset are joined: their seeds are united, and whatever would make two of their runs
incomparable is refused. A preset each is a comparison each. Read next: `results.py`, which reads one run.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from squeezenet_jax import report, settings
from squeezenet_jax.experiment import results
from squeezenet_jax.experiment.planning import SEED, flatten, setting_name, unflatten
from squeezenet_jax.experiment.sweep import MANIFEST, SPELLINGS
from squeezenet_jax.network.trace import count
from squeezenet_jax.report.comparison import contrasted
from squeezenet_jax.report.statistics.paired import MARGIN
from squeezenet_jax.runs.directory import FINISHED, RunDirectory, begun, read_json
from squeezenet_jax.system.errors import UserError, check_choice


@dataclasses.dataclass(frozen=True)
class Workdir:
    """What a workdir's manifest says."""

    path: Path
    experiment: str
    preset: str
    config: Mapping[str, Any]  # flat: the settings that all of its runs share
    swept: tuple[str, ...] | None  # None: the first version did not write it
    baseline: str  # "": an earlier version did not write it, nor what was planned
    margin: float  # percentage points: the smallest difference that matters
    tuning: Mapping[str, Any]  # from what --tune chose each setting's recipe; empty: all share one
    planned: Mapping[str, Mapping[str, Any]]  # by a run's name, in the order of the sweep: its other settings


@dataclasses.dataclass(frozen=True)
class Found:
    """A run and the workdir that it is in."""

    run: report.Run
    path: Path
    workdir: Workdir

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What its images and weights held; empty where it does not say."""
        return self.run.started.get("inputs") or {}


def compare(paths: Sequence[Path], baseline: str = "") -> tuple[list[report.Comparison], list[str]]:
    """(a comparison for each preset, notes for people) of workdirs of one experiment.

    `baseline`: the setting that the others are compared with, or the values that each is compared with its own of; "":
    the recorded one. Raises `UserError` where a folder
    is no workdir, and where the workdirs do not belong together.
    """
    workdirs = [_read(path) for path in dict.fromkeys(path.resolve() for path in paths)]
    first = workdirs[0]
    if other := next((each for each in workdirs if each.experiment != first.experiment), None):
        raise UserError(
            f"WORKDIR: a report is of one experiment; {first.path} is {first.experiment}, {other.path} "
            f"{other.experiment}"
        )
    comparisons, notes = [], []
    for preset in dict.fromkeys(each.preset for each in workdirs):
        members = [each for each in workdirs if each.preset == preset]
        for member in members[1:]:
            _check_same_experiment(members[0], member)
        found = [run for member in members for run in _runs(member)]
        if not found:
            raise UserError(f"WORKDIR: {members[0].path} holds no runs yet")
        _check_same_settings(found)
        _check_same_inputs(found)
        runs, said = _united(found)
        margin = min(member.margin for member in members)
        if any(member.margin != margin for member in members):
            notes.append(f"the workdirs declare different margins; {margin:g} points, the smallest, is taken")
        comparisons.append(
            report.compare(first.experiment, preset, _baseline(members, baseline, runs), runs, margin / 100)
        )
        notes += said
        notes += [
            f"{each.path} does not say which runs were planned; those that were never started are not counted"
            for each in members
            if not each.planned
        ]
        if len(members) > 1 and (silent := sum(not each.inputs for each in found if each.run.started)):
            notes.append(f"{silent} of the runs on {preset} do not say what their images held, so it is not compared")
    return comparisons, notes


def _read(path: Path) -> Workdir:
    manifest = read_json(path / MANIFEST)
    if manifest is None:
        raise UserError(f"WORKDIR: {path} is no workdir of launch.py: it has no {MANIFEST}")
    try:
        return Workdir(
            path,
            str(manifest["experiment"]),
            str(manifest["preset"]),
            flatten(manifest["config"]),
            tuple(manifest["sweep"]) if "sweep" in manifest else None,
            str(manifest.get("baseline", "")),
            float(manifest.get("margin", MARGIN)),
            dict(manifest.get("tuning", {})),
            {name: dict(own) for name, own in manifest.get("runs", {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path / MANIFEST}: is not what this program writes") from None


def _runs(workdir: Workdir) -> Iterator[Found]:
    """The planned runs, started or not, then others of the experiment that were started before it planned less."""
    for name in dict.fromkeys([*workdir.planned, *begun(workdir.path)]):
        directory = RunDirectory(workdir.path / name)
        if described := directory.read_description():
            overrides, nested = described.get("overrides", {}), described.get("settings", {})
            mine = described.get("experiment") == workdir.experiment and described.get("preset") == workdir.preset
            if not mine or workdir.swept not in (None, tuple(overrides)):
                continue
        else:
            own = workdir.planned[name]
            overrides, nested = {key: own[key] for key in workdir.swept or ()}, unflatten({**workdir.config, **own})
        try:
            used = settings.from_config(nested)
        except UserError as error:
            raise UserError(f"{directory.path}: {error}") from None
        run = results.read_run(directory, setting_name(overrides), overrides, used, count(used.trace()))
        yield Found(run, directory.path, workdir)


def _baseline(members: Sequence[Workdir], asked: str, runs: Sequence[report.Run]) -> str:
    names = list(dict.fromkeys(run.setting for run in runs))
    if asked:
        for name in names:
            check_choice("--baseline", contrasted(name, asked) if asked not in names else asked, names)
        return asked
    recorded = list(dict.fromkeys(member.baseline for member in members if member.baseline))
    if len(recorded) == 1:
        return recorded[0]
    why = f"differs between the workdirs: {', '.join(recorded)}" if recorded else f"{members[0].path} does not say it"
    raise UserError(f"--baseline: {why}; name one of {', '.join(names)}")


def _check_same_experiment(a: Workdir, b: Workdir) -> None:
    """Raises `UserError` where what is swept, or a setting that all runs share, is not the same."""
    if bool(a.tuning) != bool(b.tuning):
        tuned, shared = (a.path, b.path) if a.tuning else (b.path, a.path)
        raise UserError(f"WORKDIR: {tuned} holds runs of --tune, {shared} runs whose settings share one recipe")
    for key in {**a.tuning, **b.tuning}:  # the report says it once for all
        x, y = (each.tuning.get(key) for each in (a, b))
        if x != y:
            raise UserError(f"WORKDIR: {a.path} and {b.path} were tuned differently: {key} is {x} and {y}")
    swept = [[key for key in each.swept or () if key != SEED] for each in (a, b)]
    if a.swept and b.swept and swept[0] != swept[1]:
        raise UserError(f"WORKDIR: {a.path} sweeps {', '.join(swept[0])}, {b.path} {', '.join(swept[1])}")
    here, there = ({**settings.DEFAULTS, **each.config} for each in (a, b))  # what is missing is younger than the file
    for key in here | there:
        fixed = key in a.config or key in b.config
        x, y = (_plain(each.get(key)) for each in (here, there))
        if fixed and key not in SPELLINGS and key != SEED and x != y:
            raise UserError(f"WORKDIR: {a.path} and {b.path} hold other runs: {key} is {x} and {y}")


def _check_same_settings(found: Sequence[Found]) -> None:
    """Raises `UserError` where workdirs ran a setting otherwise (tuned apart, say), its seed left aside."""
    started = [each for each in found if each.run.started]  # of --tune's others the recipe is not known yet
    for setting, group in _grouped(started, lambda each: each.run.setting).items():
        here = group[0]
        varying = {
            key
            for each, other in itertools.combinations(group, 2)
            if each.workdir is other.workdir
            for key in each.run.settings
            if each.run.settings[key] != other.run.settings[key]
        }
        for other in group[1:]:
            for key, value in other.run.settings.items():
                if value != here.run.settings[key] and key not in {SEED, *SPELLINGS, *varying}:
                    raise UserError(
                        f"WORKDIR: {setting} was not run alike: {key} is {here.run.settings[key]} in {here.path}, "
                        f"{value} in {other.path}"
                    )


def _check_same_inputs(found: Sequence[Found]) -> None:
    """Raises `UserError` where runs read other images, or started a setting from other weights."""
    seen: dict[Any, tuple[str, Path]] = {}
    for each in found:
        dataset = [(key, value) for key, value in each.run.overrides.items() if key.startswith("data.")]
        facts: dict[tuple[str, ...], str] = {
            ("images", str(each.run.settings["data.name"]), repr(dataset), split): str(text)
            for split, text in each.inputs.get("data", {}).items()
        }
        if "weights" in each.inputs:
            facts["weights", each.run.setting] = str(each.inputs["weights"])
        for what, text in facts.items():
            before, path = seen.setdefault(what, (text, each.path))
            if before != text:
                raise UserError(f"WORKDIR: other {what[0]} were read: {before} by {path}, {text} by {each.path}")


def _united(found: Sequence[Found]) -> tuple[list[report.Run], list[str]]:
    """(runs, notes): each setting's seeds once, in order. Two that ended differently are refused, not chosen from."""
    runs, notes = [], []
    for (setting, seed), group in _grouped(found, lambda each: (each.run.setting, each.run.seed)).items():
        ended = [each for each in group if each.run.status in FINISHED]
        started = [each for each in group if each.run.status != "missing"]
        chosen = (ended or started or group)[0]
        for other in ended[1:]:
            if _outcome(other.run) != _outcome(chosen.run):
                raise UserError(
                    f"WORKDIR: {setting}, seed {seed}, is in {chosen.path} and {other.path} with other results; remove "
                    "one of them"
                )
            notes.append(f"{other.path} is the same run as {chosen.path}, and counts once")
        runs.append(chosen.run)
    order = list(dict.fromkeys(run.setting for run in runs))
    return sorted(runs, key=lambda run: (order.index(run.setting), run.seed)), notes


def _outcome(run: report.Run) -> Any:
    return run.status, [{**record, "images_per_second": None} for record in run.eval_curve]


def _grouped(found: Sequence[Found], key: Callable[[Found], Any]) -> dict[Any, list[Found]]:
    groups: dict[Any, list[Found]] = {}
    for each in found:
        groups.setdefault(key(each), []).append(each)
    return groups


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
