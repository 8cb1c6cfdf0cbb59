"""Runs an experiment: python launch.py --config experiments/bypass.py[:preset] [--config.field=value ...]

Plans the sweep that the experiment declares, trains every run that is not finished, and compares the results. Running
the same command again resumes. README.md has one command per question; `--list` shows the plan.
"""

import inspect
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from squeezenet_jax import report
from squeezenet_jax.experiment import slurm, sweep
from squeezenet_jax.experiment.progress import Progress
from squeezenet_jax.system import malloc, processes
from squeezenet_jax.system.errors import UserError, check_choice, unknown

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment file, with a preset: experiments/bypass.py:digits")
LIST = flags.DEFINE_bool("list", False, "Print the planned runs with their parameters and MACs, and stop.")
ONLY = flags.DEFINE_string("only", None, "Run a part of the sweep: bypass=simple,seed=1")
COORDINATOR = flags.DEFINE_string("coordinator", None, "Several processes, told by hand: host:port of process 0.")
NUM_PROCESSES = flags.DEFINE_integer("num-processes", None, "... how many there are,")
PROCESS_ID = flags.DEFINE_integer("process-id", None, "... and which of them this is, from 0.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where runs and report go (default: runs/<experiment>-<preset>).")
LAUNCHER = flags.DEFINE_string("launcher", "local", "Where runs run: local, or slurm (one job array, a task per run).")
SLURM = flags.DEFINE_string("slurm", "", "Options of --launcher slurm: partition=gpu,time=240,gpus=1")
REPORT = flags.DEFINE_bool("report", False, "Compare what is in the workdir by now, and stop.")

EXIT_WRONG_INPUT = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: run the same command again


def main(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(f"{__doc__}\n{flags.FLAGS.main_module_help()}")
        return 0
    whole = parse(argv)
    plan = whole.only(ONLY.value) if ONLY.value else whole
    on_slurm = check_choice("--launcher", LAUNCHER.value, ("local", "slurm")) == "slurm"
    if SLURM.value and not on_slurm:
        raise UserError("--slurm: is for --launcher slurm only")
    options = slurm.parse_options(SLURM.value)
    console = Console()
    if LIST.value:
        console.print(plan_table(plan))
        return 0
    workdir = Path(WORKDIR.value or f"runs/{plan.experiment}-{plan.preset}")
    if REPORT.value:
        if not (workdir / sweep.MANIFEST).is_file():
            raise UserError(f"--workdir: {workdir} holds no runs yet")
        sweep.claim(whole, workdir)
        show(whole, workdir, console)
        return 0
    if on_slurm:
        submission = slurm.submit(plan, workdir, options, Path(__file__).resolve(), argv[1:])
        for line in submission.lines(shlex.join(["python", *argv, "--report"])):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        if not submission.pending:
            show(whole, workdir, console)
        return 0
    stop = StopRequest()
    processes.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    if not processes.is_main():  # it computes its part; what it writes is of no use to anybody
        with tempfile.TemporaryDirectory() as scratch:
            statuses = sweep.run(plan, Path(scratch), Progress(Console(quiet=True)), stop.requested)
        processes.from_main(True)  # waits: a launcher may kill all of them when one leaves
        return exit_code(statuses)
    statuses = sweep.run(plan, workdir, Progress(console), stop.requested)
    show(whole, workdir, console)  # with the rows of a sweep that is run in parts
    processes.from_main(True)
    return exit_code(statuses)


def exit_code(statuses: Sequence[str]) -> int:
    return 1 if "failed" in statuses else EXIT_PREEMPTED if "preempted" in statuses else 0


def show(whole: sweep.Plan, workdir: Path, console: Console) -> None:
    """Compares what is in the workdir: writes the report and prints its table."""
    comparison = sweep.compare(whole, workdir)
    report.write(comparison, workdir)
    report.print_table(comparison, console)
    console.print(f"Report: {workdir / 'report.html'}", highlight=False, soft_wrap=True)


def parse(argv: list[str]) -> sweep.Plan:
    """Reads the command line; whatever is wrong with it ends in a `UserError`."""
    path, preset = _experiment_argument(argv)
    experiment = sweep.load_experiment(path)
    preset = preset or inspect.signature(experiment.get_config).parameters["preset"].default
    known = sweep.flatten(experiment.get_config(preset).to_dict())
    for arg in argv[1:]:  # before absl, which would show a traceback
        name = arg.lstrip("-").partition("=")[0]
        field = name.removeprefix("config.").removeprefix("noconfig.")
        if field != name and field not in known:
            raise unknown("--config", field, known)
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]}; fields are set as --config.{rest[1].lstrip('-')}")
    overridden = config_flags.get_override_values(flags.FLAGS["config"])
    return sweep.plan(experiment, preset, CONFIG.value.to_dict(), overridden)


def _experiment_argument(argv: list[str]) -> tuple[str, str]:
    """(path, preset) of --config; the preset may be empty."""
    for arg, following in zip(argv[1:], [*argv[2:], ""], strict=False):
        name, equals, value = arg.partition("=")
        if name in ("--config", "-config"):
            path, _, preset = (value if equals else following).partition(":")
            return path, preset
    raise UserError("--config is missing; example: python launch.py --config experiments/bypass.py")


def plan_table(plan: sweep.Plan) -> Table:
    table = Table("run", "params", "MACs", title=f"{plan.experiment} on {plan.preset}: {len(plan.runs)} runs")
    for run in plan.runs:
        params, macs = run.cost
        table.add_row(run.name, f"{params:,}", f"{macs:,}")
    return table


class StopRequest:
    """Turns SIGINT and SIGTERM into a wish that the training loop looks at after each step.

    A second Ctrl-C kills; a second SIGTERM does not, because schedulers send several before they kill.
    """

    def __init__(self) -> None:
        self._requested = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._request)

    def _request(self, number: int, frame: object) -> None:
        self._requested = True
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    def requested(self) -> bool:
        return self._requested


def run_main(argv: list[str]) -> int:
    """`main`, with one line for whatever a person can mend."""
    try:
        return main(argv)
    except OSError as error:
        print(f"error: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    except Exception:
        if not processes.several():
            raise
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    malloc.restart_with_tuned_malloc()
    code = run_main(sys.argv)
    if code and processes.several():
        processes.leave(code)
    sys.exit(code)
