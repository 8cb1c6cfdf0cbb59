"""Equal tuning: every setting of a sweep is given the same trials, and runs with what did best in its own. No jax.

The trials are a sweep, in the folder `tuning` of the workdir: each setting with each point of one grid, trained on the
first 80 % of its training images and judged on the rest, never on what the sweep is evaluated on, with seeds that the
sweep has not. With v_s(p) the top-1 of the trial of seed s at the point p of the grid after its last step,

    chosen = argmax_p mean_s v_s(p),

where a point with a trial that was not evaluated (it diverged) loses to every other, and of equal points the first
wins. Numbers stand in the grid from low to high, so of equal rates the lowest is taken. What was chosen of what goes
into `tuning.json` and stands from then on. Read next: `sweep.py`, which runs trials and sweep alike, and
`report/tuning.py`, which tells what was chosen.
"""

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from squeezenet_jax.data import catalog
from squeezenet_jax.experiment import planning, results, slurm, sweep
from squeezenet_jax.experiment.planning import SEED, Plan, PlannedRun, flatten, grids
from squeezenet_jax.runs.directory import FINISHED, RunDirectory, read_json, write_json
from squeezenet_jax.settings import DataSettings
from squeezenet_jax.system import processes
from squeezenet_jax.system.errors import UserError

TRIALS = "tuning"  # the folder of a workdir that holds the trials
RECORD = "tuning.json"
FIRST_SEED = 1_000_000  # the trials' seeds count from here
TRAINED = 0.8  # share of the training images that trials train on

Choice = Mapping[str, Any]  # what tuning.json says of a setting


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The trials of a sweep, and the sweep that follows them."""

    grid: Mapping[str, tuple[Any, ...]]  # by setting's name, numbers from low to high
    seeds: tuple[int, ...]
    sweep: Plan  # its runs still have the shared recipe: see `with_choices`

    @functools.cached_property
    def trials(self) -> Plan:
        """Raises `UserError` where a trial is not possible or would be judged on what the sweep is evaluated on."""
        runs: list[PlannedRun] = []
        flat_configs = []
        firsts = {run.setting: run for run in reversed(self.sweep.runs)}
        settings_in_order = dict.fromkeys(run.setting for run in self.sweep.runs)
        for first in (firsts[setting] for setting in settings_in_order):
            trained_on, judged_on = parts(first.settings.data)
            swept = {key: value for key, value in first.overrides.items() if key != SEED}
            for values, seed in itertools.product(self._points, self.seeds):
                overrides = {**swept, **values, SEED: seed}
                splits = {"data.train_split": trained_on, "data.eval_split": judged_on}
                run_settings = planning.changed(first.settings, {**values, **splits, SEED: seed})
                catalog.check(run_settings.data)
                about = {"trial_of": first.setting, "judged_on": judged_on}
                name, row = self._name(overrides), self._name({**swept, **values})
                runs.append(PlannedRun(name, row, overrides, run_settings, len(runs), about))
                flat_configs.append(flatten(dataclasses.asdict(run_settings)))
        planning.check_names("--grid", [run.name for run in runs])
        planning.check_differences("--grid", runs)
        config = planning.common(flat_configs, runs[0].overrides)
        values = self._shared if self._shared in self._points else self._points[0]
        of_sweep = [] if self.sweep.baseline == planning.ONE else [self.sweep.baseline]
        baseline = ",".join([*of_sweep, self._name(values)])
        return Plan(self.sweep.experiment, self.sweep.preset, baseline, config, tuple(runs), margin=self.sweep.margin)

    def trials_of(self, part: Plan) -> Plan:
        """The trials that a part of the sweep follows from; a part of the trials is itself."""
        if is_trial(part.runs[0]):
            return part
        wanted = {run.setting for run in part.runs}
        return self.trials.part([run for run in self.trials.runs if run.tuning["trial_of"] in wanted])

    def decide(self, workdir: Path) -> dict[str, Choice]:
        """The choices by setting, of those whose trials are finished; writes what is new to `tuning.json`.

        Starts that share a workdir may write at the same time. What one of them does not know of the other's is chosen
        again at the next start, from the same trials.
        """
        record = read_json(workdir / RECORD) or {}
        choices: dict[str, Choice] = dict(record.get("settings", {}))
        undecided = dict.fromkeys(run.setting for run in self.sweep.runs if run.setting not in choices)
        found = {setting: choice for setting in undecided if (choice := self._choose(setting, workdir))}
        if found:
            choices |= found
            write_json(workdir / RECORD, {**self.sweep.tuning, "settings": choices})
        return choices

    def with_choices(self, part: Plan, choices: Mapping[str, Choice]) -> Plan:
        """A part of the sweep in which each setting has what was chosen for it, where something was."""

        def chosen(planned: PlannedRun) -> PlannedRun:
            choice = choices.get(planned.setting)
            if choice is None:
                return planned
            run_settings = planning.changed(planned.settings, planning.plain(choice["chosen"]))
            return dataclasses.replace(planned, settings=run_settings, tuning=choice)

        runs, others = (tuple(map(chosen, runs)) for runs in (part.runs, part.others))
        return dataclasses.replace(part, runs=runs, others=others)

    def comparable(self, workdir: Path) -> list[tuple[Plan, Path]]:
        """What can be compared by now, and where it lies: the trials, and the sweep once something is chosen."""
        choices = self.decide(workdir)
        try:
            tried = [(self.trials, workdir / TRIALS)]
        except UserError:  # their images are gone
            if not choices:
                raise
            tried = []
        return [*tried, (self.with_choices(self.sweep, choices), workdir)] if choices else tried

    def run(self, part: Plan, workdir: Path, run: Callable[[Plan, Path], list[str]]) -> list[str]:
        """Runs the trials that `part` needs, then, as they decide, `part`; returns the statuses of what was run last:
        trials that are not finished end it.

        `part` may also be a part of the trials, which is then all that is run.
        """
        trials, only_trials = self.trials_of(part), is_trial(part.runs[0])
        sweep.claim(self.sweep, workdir)
        sweep.check_inputs(trials, workdir / TRIALS)
        needed = {run.tuning["trial_of"] for run in trials.runs}
        choices = processes.from_main(self.decide(workdir))
        if only_trials or not needed <= choices.keys():
            statuses = run(trials, workdir / TRIALS)
            choices = processes.from_main(self.decide(workdir))
            if only_trials:
                return statuses
            if not needed <= choices.keys():  # stopped, failed, or run by another start: to be started again
                return [status if status in (*FINISHED, "failed") else "preempted" for status in statuses]
        return run(self.with_choices(part, choices), workdir)

    def submit(
        self, part: Plan, workdir: Path, options: slurm.Options, launcher: Path, arguments: Sequence[str]
    ) -> "Submissions":
        """`slurm.submit` of the trials that `part` needs and, as an array that waits for theirs to end, of `part`.

        A task of the second one whose trials failed tries them once more.
        """
        slurm.check_installed()
        sweep.claim(self.sweep, workdir)
        choices, trials = self.decide(workdir), self.trials_of(part)
        missing = [run for run in trials.runs if run.tuning["trial_of"] not in choices]
        how = (options, launcher, arguments)
        submitted = {}
        if missing:
            of_task = ("--trials", f"--workdir={workdir.absolute()}")
            submitted["trials"] = slurm.submit(trials.part(missing), workdir / TRIALS, *how, of_task)
        if not is_trial(part.runs[0]):
            after = submitted["trials"].jobs if missing else ()
            submitted["sweep"] = slurm.submit(self.with_choices(part, choices), workdir, *how, after=after)
        return Submissions(submitted)

    def _choose(self, setting: str, workdir: Path) -> Choice | None:
        """None while one of its trials is not finished."""
        planned = [run for run in self.trials.runs if run.tuning["trial_of"] == setting]
        folders = [RunDirectory(workdir / TRIALS / run.name) for run in planned]
        if any(folder.status not in FINISHED for folder in folders):
            return None
        points: list[dict[str, Any]] = []
        for values in self._points:
            trials: list[dict[str, Any]] = []
            for run, folder in zip(planned, folders, strict=True):
                if self._values(run) == values:
                    read = results.read_run(folder, run.setting, run.overrides, run.settings, run.cost)
                    top1 = read.result["top1"] if read.result else None
                    trials.append({"run": run.name, "seed": read.seed, "status": read.status, "top1": top1})
            scores = [trial["top1"] for trial in trials if trial["top1"] is not None]
            mean = statistics.fmean(scores) if len(scores) == len(trials) else None
            points.append({"values": values, "top1": mean, "trials": trials})
        best = max(points, key=lambda point: -1.0 if point["top1"] is None else point["top1"])
        ends = [key for key, value in best["values"].items() if value in grids.ends(self.grid[key])]
        data = planned[0].settings.data
        return {
            "chosen": best["values"],
            "top1": best["top1"],
            "at_the_end": ends,
            "trained_on": data.train_split,
            "judged_on": data.eval_split,
            "points": points,
            **self.sweep.tuning,
        }

    @property
    def _points(self) -> list[dict[str, Any]]:
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    @property
    def _shared(self) -> dict[str, Any]:
        return {key: self.sweep.tuning["shared"][key] for key in self.grid}

    def _values(self, trial: PlannedRun) -> dict[str, Any]:
        return {key: trial.overrides[key] for key in self.grid}

    def _name(self, overrides: Mapping[str, Any]) -> str:
        keys = [*(key for key in self.sweep.runs[0].overrides if key != SEED), *self.grid, SEED]
        return planning.run_name(overrides, {key: name for name, key in planning.short_names(keys).items()})


@dataclasses.dataclass(frozen=True)
class Submissions:
    """What was submitted of "trials" and "sweep", to be told like one."""

    by_name: Mapping[str, slurm.Submission]

    @property
    def pending(self) -> bool:
        return any(submission.pending for submission in self.by_name.values())

    def lines(self, report_command: str) -> list[str]:
        told = {name: submission.lines(report_command) for name, submission in self.by_name.items()}
        return [f"{name}: {line}" for name, lines in told.items() for line in lines]


def is_trial(planned: PlannedRun) -> bool:
    return "trial_of" in planned.tuning


def plan(whole: Plan, experiment: ModuleType, asked: Sequence[str], seeds: int) -> Tuning:
    """The tuning of a sweep; `asked` and `seeds` are those of the command line, which may leave the grid open."""
    if seeds < 1:
        raise UserError(f"--tune-seeds: {seeds} is not allowed; it must be at least 1")
    trial_seeds = tuple(range(FIRST_SEED, FIRST_SEED + seeds))
    if taken := sorted({run.settings.seed for run in whole.runs} & {*trial_seeds}):
        raise UserError(f"sweep() of {experiment.__name__}: seed {taken[0]} is one of the trials' own; use another")
    grid = grids.grid(whole, experiment, asked)
    shared = {key: whole.config[key] for key in grid}
    config = {key: value for key, value in whole.config.items() if key not in grid}
    chosen_from = {"grid": grid, "seeds": trial_seeds, "shared": shared}
    return Tuning(grid, trial_seeds, dataclasses.replace(whole, config=config, tuning=chosen_from))


def parts(data: DataSettings) -> tuple[str, str]:
    """(what trials train on, what they are judged on) of `data.train_split`, both in images: "train[:80]" and so on.

    The datasets' orders are mixed, so both are random parts of each class. Raises `UserError` where the second has
    images that the sweep is evaluated on.
    """
    found = catalog.info(data.name, data.dir)
    train, held_out = (
        catalog.parse_split(f"data.{field}", getattr(data, field), data.name, found)
        for field in ("train_split", "eval_split")
    )
    cut = train.start + round(TRAINED * (train.stop - train.start))
    if not train.start < cut < train.stop:
        raise UserError(f"--tune: data.train_split has too few images, {train.stop - train.start}, to hold some out")
    judged_on = f"{train.name}[{cut}:{train.stop}]"
    if catalog.Split(train.name, cut, train.stop).shared_with(held_out):
        raise UserError(
            f"data.eval_split: {data.eval_split} shares images with {judged_on}, on which --tune would choose the "
            "recipe; evaluate on images that chose nothing"
        )
    return f"{train.name}[{train.start}:{cut}]", judged_on
