"""Runs an experiment: python launch.py --config experiments/bypass.py[:preset] [--config.field=value ...]

Plans the sweep that the experiment declares, trains every run that is not finished, and compares the results. Running
the same command again resumes. README.md has one command per question; `--list` shows the plan.
"""

import sys

from squeezenet_jax.system import ending, malloc, terminal

if __name__ == "__main__":  # before the imports below, which take a second
    malloc.restart_with_tuned_malloc()
    ending.leave_on_ctrl_c()

import dataclasses
import os
import shlex
import tempfile
import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any, cast

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from squeezenet_jax import report, settings
from squeezenet_jax.experiment import inspection, jobs, loggers, planning, shares, slurm, sweep, tuning
from squeezenet_jax.experiment.progress import Progress
from squeezenet_jax.report import wording
from squeezenet_jax.runs.directory import fetch_runs, read_json
from squeezenet_jax.system import processes, storage
from squeezenet_jax.system.errors import UserError, check_choice, unknown

try:  # it reads --flagfile, and the file there, as soon as it is defined
    CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment file and preset: experiments/bypass.py:digits")
except flags.Error as error:
    print(f"error: {' '.join(str(error).removeprefix('ERROR:: ').split())}", file=sys.stderr)
    sys.exit(ending.WRONG_INPUT)
LIST = flags.DEFINE_bool("list", False, "Print the planned runs with their parameters and MACs, and stop.")
SIGNAL = flags.DEFINE_bool(
    "signal", False, "Print the scale of each layer's output and gradient at the start, and stop."
)
PROFILE = flags.DEFINE_integer(
    "profile", None, "Trace so many steps of the plan's first run, print what they cost, and stop.", lower_bound=1
)
SEEDS = flags.DEFINE_string("seeds", "", "In place of the experiment's own: 20 for 0 to 19, 20:40 for 20 to 39.")
ONLY = flags.DEFINE_string("only", None, "Run a part of the sweep: bypass=simple,seed=1")
JOBS = flags.DEFINE_string("jobs", "1", "Runs at a time, each with its share of the devices: a number, or auto.")
TUNE = flags.DEFINE_bool("tune", False, "First choose each setting's own recipe by trials on training images.")
GRID = flags.DEFINE_multi_string("grid", [], "What --tune tries (default: four rates): optimizer.peak_lr=1e-3,2e-3")
TUNE_SEEDS = flags.DEFINE_integer("tune-seeds", 1, "How many seeds --tune tries each point of its grid with.")
TRIALS = flags.DEFINE_bool("trials", False, "Of --tune the trials only, among which --only and --list then select.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "Several processes, told by hand: host:port of process 0.")
NUM_PROCESSES = flags.DEFINE_integer("num-processes", None, "... how many there are,")
PROCESS_ID = flags.DEFINE_integer("process-id", None, "... and which of them this is, from 0.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where runs and report go (default: runs/<experiment>-<preset>).")
LAUNCHER = flags.DEFINE_string("launcher", "local", "Where runs run: local, or slurm (one job array, a task per run).")
SLURM = flags.DEFINE_string("slurm", "", "Options of --launcher slurm: partition=gpu,time=240,gpus=1")
REPORT = flags.DEFINE_bool("report", False, "Compare what is in the workdir by now, and stop.")

ROOT = Path(__file__).resolve().parent
NO_PRESET = "its own settings"
CONFIG_FLAGS = ("--config", "-config")
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: run the same command again


def main(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(f"{__doc__}\n{flags.FLAGS.main_module_help()}\n\n{settings_help(argv)}")
        return 0
    asked = parse(argv)
    on_slurm = check_choice("--launcher", LAUNCHER.value, ("local", "slurm")) == "slurm"
    at_a_time = shares.parse(JOBS.value)
    check_flags_go_together(at_a_time, on_slurm)
    options = slurm.parse_options(SLURM.value)
    place = WORKDIR.value or asked.default_workdir
    workdir = storage.expand(place, "--workdir")
    if not LIST.value:
        fetch_runs(workdir)
    whole = asked.plan(recorded=recorded_config(workdir) if REPORT.value else None)
    tuned = asked.tuning(whole)
    whole = (tuned.trials if TRIALS.value else tuned.sweep) if tuned else whole
    plan = whole if ONLY.value is None else whole.only(ONLY.value)
    if on_slurm:
        storage.local_only(place, "--workdir", "Slurm's nodes need a shared folder")
    stop = ending.StopRequest()
    out = cast(IO[str], terminal.Pipe(sys.stdout, stop.request))
    console = Console(file=out, width=terminal.columns(sys.stdout))

    def show() -> None:
        comparable = tuned.comparable(workdir)[: 1 if TRIALS.value else None] if tuned else [(whole, workdir)]
        for compared, folder in comparable:
            show_comparison(compared, folder, console)

    if LIST.value:
        if tuned and not TRIALS.value:
            console.print(plan_table(tuned.trials_of(plan), "trials first"))
        console.print(plan_table(plan))
        console.print(wording.planned_power(plan.seeds, plan.margin / 100), highlight=False)
        return 0
    if SIGNAL.value:
        for table in inspection.signal_tables(plan):
            console.print(table)
        return 0
    if PROFILE.value:
        inspection.show_profile(plan, PROFILE.value, workdir, console)
        return 0
    if REPORT.value:
        sweep.claim(tuned.sweep if tuned else whole, workdir)
        show()
        return 0
    if on_slurm:
        submit = tuned.submit if tuned else slurm.submit
        submission = submit(plan, workdir, options, Path(__file__).resolve(), argv[1:])
        for line in submission.lines(shlex.join(["python", *argv, "--report"])):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        if not submission.pending:
            show()
        return 0

    def run(plan: planning.Plan, workdir: Path) -> list[str]:
        if at_a_time != 1:
            return jobs.run(plan, workdir, at_a_time, console, stop.requested)
        progress = Progress(console if processes.is_main() else Console(quiet=True))
        return sweep.run(plan, workdir, progress, stop.requested)

    def run_all(workdir: Path) -> list[str]:
        return tuned.run(plan, workdir, run) if tuned else run(plan, workdir)

    stop.listen()
    if at_a_time == 1:  # else each worker has its own devices
        processes.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        if not processes.is_main():  # it computes its part; what it writes is of no use to anybody
            with tempfile.TemporaryDirectory() as scratch:
                statuses = run_all(Path(scratch))
            processes.from_main(True)  # waits: a launcher may kill all of them when one leaves
            return exit_code(statuses)
    statuses = run_all(workdir)
    show()  # with the rows of a sweep that is run in parts
    if at_a_time == 1:
        processes.from_main(True)
    return exit_code(statuses)


def check_flags_go_together(at_a_time: shares.Jobs, on_slurm: bool) -> None:
    """Raises `UserError` where one flag would leave another without effect.

    --list and --report go with whatever the command has, so that they can be put behind it.
    """
    if SLURM.value and not on_slurm:
        raise UserError("--slurm: is for --launcher slurm only")
    looks = [f"--{flag.name}" for flag in (LIST, SIGNAL, PROFILE, REPORT) if flag.value]
    if len(looks) > 1:
        raise UserError(f"{looks[1]}: prints and stops, as {looks[0]} does; give one of them")
    by_hand = [f"--{flag.name}" for flag in (COORDINATOR, NUM_PROCESSES, PROCESS_ID) if flag.value is not None]
    spread = ["--launcher slurm"] * on_slurm + ["--jobs"] * (at_a_time != 1) + by_hand
    if spread and (SIGNAL.value or PROFILE.value):
        raise UserError(f"{looks[0]}: looks at a run in this one process, so it is not for {spread[0]}")
    if (SIGNAL.value or PROFILE.value) and processes.started_together(os.environ):
        raise UserError(f"{looks[0]}: looks at a run in this one process, but several were started; start one")
    if at_a_time != 1 and (on_slurm or by_hand):
        with_ = "--launcher slurm, which runs all at a time" if on_slurm else "--coordinator and its like"
        raise UserError(f"--jobs: is for one process on one machine, not for {with_}")
    if on_slurm and by_hand:
        raise UserError(f"{by_hand[0]}: is for processes that you start, not for --launcher slurm")


def exit_code(statuses: Sequence[str]) -> int:
    return 1 if "failed" in statuses else EXIT_PREEMPTED if "preempted" in statuses else 0


def show_comparison(plan: planning.Plan, workdir: Path, console: Console) -> None:
    """Compares what is in the workdir: writes the report and prints its table."""
    fetch_runs(workdir)  # what others that share it have done
    comparison = sweep.compare(plan, workdir)
    report.write(comparison, workdir)
    report.print_table(comparison, console)
    loggers.write_comparison(plan.runs[0].settings.logging, comparison, workdir, console.print)
    console.print(f"Report: {workdir / 'report.html'}", highlight=False, markup=False, soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command line asks for: an experiment, its preset, and its config with the overridden fields in it."""

    experiment: ModuleType
    preset: str
    config: Mapping[str, Any]
    overridden: Collection[str]

    @property
    def default_workdir(self) -> str:
        preset = [] if self.preset == NO_PRESET else [self.preset]
        return "-".join(["runs/" + self.experiment.__name__, *preset, *(["tuned"] if TUNE.value else [])])

    def plan(self, recorded: Mapping[str, Any] | None) -> planning.Plan:
        return planning.plan(self.experiment, self.preset, self.config, self.overridden, recorded, SEEDS.value)

    def tuning(self, whole: planning.Plan) -> tuning.Tuning | None:
        """The trials that --tune puts before the sweep; None without it."""
        if not TUNE.value:
            for flag in (GRID, TUNE_SEEDS, TRIALS):
                if flag.value != flag.default:
                    raise UserError(f"--{flag.name}: is for --tune only")
            return None
        return tuning.plan(whole, self.experiment, GRID.value, TUNE_SEEDS.value)


def parse(argv: list[str]) -> Asked:
    """Reads the command line; whatever is wrong with it ends in a `UserError`."""
    place, path, preset = _experiment_argument(argv)
    experiment = planning.load_experiment(path, ROOT)
    preset, known = planning.get_config(experiment, path, preset)
    for arg in argv[1:]:  # before absl, which would show a traceback
        name = arg.lstrip("-").partition("=")[0]
        field = name.removeprefix("config.").removeprefix("noconfig.")
        if arg.startswith("-") and field != name and field not in known:
            raise unknown("--config", field, known)
    if not Path(path).is_file():  # found below this file: another working directory
        argv = [arg.replace(path, str(ROOT / path), 1) if number == place else arg for number, arg in enumerate(argv)]
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]}; {_how_to_set(rest[1], argv)}")
    overridden = config_flags.get_override_values(flags.FLAGS["config"])
    return Asked(experiment, preset or NO_PRESET, CONFIG.value.to_dict(), set(overridden))


def settings_help(argv: list[str]) -> str:
    """A line for each setting, with its value in the experiment and preset of --config where there is one."""
    here: Mapping[str, Any] = {}
    if any(arg.partition("=")[0] in CONFIG_FLAGS for arg in argv[1:]):
        _, path, preset = _experiment_argument(argv)
        _, here = planning.get_config(planning.load_experiment(path, ROOT), path, preset)
    lines = ["Settings, as --config.NAME=VALUE (docs/settings.md has the same list):"]
    for name, type_, default, rule in settings.ROWS:
        differs = f"; here {here[name]!r}" if here.get(name, default) != default else ""
        allowed = f"; {rule.allowed}" if rule.allowed else ""
        lines.append(f"  {name}: {rule.meaning}\n      ({type_}{allowed}; default {default!r}{differs})")
    return "\n".join(lines)


def _how_to_set(stray: str, argv: list[str]) -> str:
    before = argv[argv.index(stray) - 1]
    if before.startswith("--config.") and "=" not in before:
        return f"a field that is true or false is set as {before}={stray}"
    return f"fields are set as --config.{stray.lstrip('-').removeprefix('config.')}"


def _experiment_argument(argv: list[str]) -> tuple[int, str, str]:
    """(place in argv, path, preset) of --config; the preset may be empty."""
    if sum(arg.partition("=")[0] in CONFIG_FLAGS for arg in argv[1:]) > 1:
        raise UserError("--config: is given more than once; an experiment and its preset are --config FILE:PRESET")
    for place, (arg, following) in enumerate(zip(argv, [*argv[1:], ""], strict=True)):
        name, equals, value = arg.partition("=")
        if place and name in CONFIG_FLAGS:
            path, colon, preset = (value if equals else following).partition(":")
            if colon and not preset:
                raise UserError(f"--config: {path}: names no preset; leave out the colon for its default")
            return place if equals else place + 1, path, preset
    raise UserError("--config is missing; example: python launch.py --config experiments/bypass.py")


def recorded_config(workdir: Path) -> Mapping[str, Any]:
    """The configuration of a workdir's runs; `UserError` where there are none."""
    manifest = read_json(workdir / sweep.MANIFEST)
    if manifest is None:
        raise UserError(f"--workdir: {workdir} holds no runs yet")
    return dict(manifest.get("config", {}))


def plan_table(plan: planning.Plan, what: str = "runs") -> Table:
    table = Table(
        Column("run", overflow="fold"),
        "params",
        "MACs",
        title=f"{plan.experiment} on {plan.preset}: {len(plan.runs)} {what}",
    )
    for run in plan.runs:
        params, macs = run.cost
        table.add_row(Text(run.name), f"{params:,}", f"{macs:,}")
    return table


def run_main(argv: list[str]) -> int:
    """`main`, with one line for whatever a person can mend."""
    try:
        return ending.exit_code(lambda: main(argv))
    except Exception:
        if not processes.several():
            raise
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    terminal.prepare_output()
    code = run_main(sys.argv)
    if code == ending.INTERRUPTED or (code and processes.several()):
        ending.exit_at_once(code)
    sys.exit(code)
