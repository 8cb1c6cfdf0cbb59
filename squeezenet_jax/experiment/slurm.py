"""Sweeps beyond one machine: one Slurm job array for a plan, one array task per unfinished run, through submitit.

An array task runs the same launch.py as a child process with `--launcher local --only <its run>`, so a run does not
know who started it. Near the task's time limit, and where Slurm preempts it, the child is told to stop, writes its
checkpoint, and the task goes back into the queue to be resumed. Read `RunTask` for who signals whom. No jax here: the
machine that submits may have no accelerator.
"""

import contextlib
import dataclasses
import io
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from squeezenet_jax.experiment import sweep
from squeezenet_jax.experiment.planning import Plan
from squeezenet_jax.runs.directory import read_json, write_json
from squeezenet_jax.system.errors import UserError, unknown

JOBS = "jobs.json"  # in <workdir>/slurm: which job a run was submitted as last
MAX_TIME_LIMITS = 100  # how often a run may be resumed after a time limit; preemptions are not counted
SQUEUE_SECONDS = 10  # for which squeue is asked before a time limit
SIGTERM_SECONDS = 300  # the same after a SIGTERM; longer than Slurm lets a task live after its own
SQUEUE_PAUSE = 2
STOPPED = (os.EX_TEMPFAIL, -signal.SIGTERM)  # launch.py wrote a checkpoint, or had not begun


@dataclasses.dataclass(frozen=True)
class Options:
    """What `--slurm` can say: where and how long tasks run. Nothing here changes a result."""

    partition: str | None = None
    time: int = 60  # minutes; a run that needs longer is resumed in further ones
    gpus: int | None = None  # of one task
    cpus: int | None = None
    memory: float | None = None  # GB
    account: str | None = None
    qos: str | None = None
    max_parallel: int | None = None  # tasks at a time
    signal_delay: int = 120  # seconds before the time limit at which a task is told to write its checkpoint

    @property
    def grace(self) -> float:
        """Seconds that a child gets for its checkpoint; the rest of `signal_delay` is for going back to the queue."""
        return 0.75 * self.signal_delay


def parse_options(text: str) -> Options:
    """Reads `partition=gpu,time=240,gpus=1`."""
    readers = {
        "time": _minutes,
        "memory": _gigabytes,
        **dict.fromkeys(("partition", "account", "qos"), _word),
        **dict.fromkeys(("gpus", "cpus", "max_parallel", "signal_delay"), _count),
    }
    names = [field.name for field in dataclasses.fields(Options)]
    values: dict[str, Any] = {}
    for part in text.split(",") if text else []:
        key, _, value = part.strip().partition("=")
        if key not in readers:
            raise unknown("--slurm", key, names)
        if key in values:
            raise UserError(f"--slurm {key}: given twice")
        try:
            values[key] = readers[key](value)
        except ValueError as error:
            raise UserError(f'--slurm {key}: "{value}" is not {error}; the options are {", ".join(names)}') from None
    options = Options(**values)
    if 60 * options.time <= options.signal_delay + 60:  # Slurm's signal may come a minute early
        needed = options.signal_delay // 60 + 2
        raise UserError(f"--slurm time: {options.time} min with signal_delay={options.signal_delay}; at least {needed}")
    return options


def _word(text: str) -> str:
    if not re.fullmatch(r"\S+", text):
        raise ValueError("a name")
    return text


def _count(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise ValueError("a whole number from 1")
    return int(text)


def _gigabytes(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not float(text):
        raise ValueError("a number of GB")
    return float(text)


def _minutes(text: str) -> int:
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text)
    if clock:
        days, hours, minutes, seconds = (int(group or 0) for group in clock.groups())
        text = str(24 * 60 * days + 60 * hours + minutes + math.ceil(seconds / 60))
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise ValueError("minutes, H:MM:SS or D-HH:MM:SS")
    return int(text)


@dataclasses.dataclass(frozen=True)
class Submission:
    job: str  # the array's id; empty where nothing was left to submit
    runs: tuple[str, ...]  # what was submitted
    queued: tuple[str, ...]  # unfinished runs that an earlier submission still has in Slurm's queue
    logs: Path
    jobs: tuple[str, ...] = ()  # the ids of all that is submitted or queued

    @property
    def pending(self) -> bool:
        """Whether a run will still change what a report says."""
        return bool(self.runs or self.queued)

    def lines(self, report_command: str) -> list[str]:
        """What to tell the person who submitted."""
        lines = [f"already queued or running: {', '.join(self.queued)}"] if self.queued else []
        if self.runs:
            lines += [f"submitted job {self.job}: {len(self.runs)} to do, an array task per run", f"logs: {self.logs}"]
        if self.pending:
            return [*lines, f"report, at any time: {report_command}"]
        return ["nothing to submit: every run is finished"]


def submit(
    plan: Plan,
    workdir: Path,
    options: Options,
    launcher: Path,
    arguments: Sequence[str],
    of_task: Sequence[str] = (),
    after: Sequence[str] = (),
) -> Submission:
    """Submits the plan's runs that are neither finished nor queued.

    `launcher` is the launch.py that tasks run: the one that is running, wherever this package is installed.
    `arguments` are those of its command, `of_task` those that only tasks get; these wait for the jobs `after` to end.
    """
    workdir = workdir.absolute()
    logs = workdir / "slurm"
    unfinished = sweep.unfinished_runs(plan, workdir)
    if unfinished:
        check_installed()
        _download_weights({run.settings.model.weights for run in plan.runs if run.name in unfinished})
    sweep.claim(plan, workdir)
    jobs = read_json(logs / JOBS) or {}
    alive = _queue() if jobs and unfinished else set()
    queued = tuple(name for name in unfinished if jobs.get(name) in alive)
    runs = tuple(name for name in unfinished if name not in queued)
    if not runs:
        return Submission("", (), queued, logs, tuple(jobs[name] for name in queued))
    command = (sys.executable, "-u", str(launcher), *arguments)
    command += ("--launcher=local", "--slurm=", f"--workdir={workdir}", *of_task)  # of a flag, the last one counts
    task = RunTask(command, os.getcwd(), options.grace)
    ids = _submit_array(task, runs, options, logs, launcher.parent, f"{plan.experiment}-{plan.preset}", after)
    write_json(logs / JOBS, jobs | dict(zip(runs, ids, strict=True)))
    pending = (*(jobs[name] for name in queued), ids[0].split("_")[0])
    return Submission(ids[0].split("_")[0], runs, queued, logs, pending)


def _download_weights(names: Collection[str]) -> None:
    """Weights that have a name come here, once: nodes may have no network, but share the home folder's cache."""
    for name in sorted(filter(None, names)):
        from squeezenet_jax import weights  # jax

        try:
            weights.locate(name)
        except UserError as error:
            raise UserError(f"model.init_from: {name}: {error}") from None


def check_installed() -> None:
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise UserError(f"--launcher slurm: no {program} on the PATH; submit from a machine of the Slurm cluster")
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError("--launcher slurm: needs submitit; pip install -r requirements-slurm.txt") from None


def _queue() -> set[str]:
    """The ids of this user's waiting and running tasks, such as "17_3"."""
    result = subprocess.run(["squeue", "--me", "--noheader", "--array", "--format=%i"], capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"--launcher slurm: {_last_line(result.stderr, 'squeue failed')}")
    return set(result.stdout.split())


def _submit_array(
    task: "RunTask",
    runs: Sequence[str],
    options: Options,
    logs: Path,
    checkout: Path,
    name: str,
    after: Sequence[str] = (),
) -> list[str]:
    import submitit

    executor = submitit.AutoExecutor(folder=logs, cluster="slurm", slurm_max_num_timeout=MAX_TIME_LIMITS)
    executor.update_parameters(  # None is Slurm's default
        name=name,
        timeout_min=options.time,
        gpus_per_node=options.gpus,
        cpus_per_task=options.cpus,
        mem_gb=options.memory,
        slurm_partition=options.partition,
        slurm_account=options.account,
        slurm_qos=options.qos,
        slurm_array_parallelism=options.max_parallel,
        slurm_signal_delay_s=options.signal_delay,
        # afterany: a task that begins behind a failed one says so, one that could never begin would wait for ever
        slurm_additional_parameters={"requeue": True}
        | ({"dependency": "afterany:" + ":".join(after)} if after else {}),
        # srun, which submitit starts the task with, does not take this one over from sbatch
        slurm_srun_args=[f"--cpus-per-task={options.cpus}"] if options.cpus else None,
        # a package that is used from its checkout must be found where the task is unpickled, wherever the job starts
        slurm_setup=[f'export PYTHONPATH={shlex.quote(str(checkout))}"${{PYTHONPATH:+:$PYTHONPATH}}"'],
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what the exception says
            jobs = executor.map_array(task, runs)
    except (RuntimeError, subprocess.SubprocessError) as error:
        raise UserError(f"--launcher slurm: {_last_line(str(error), 'sbatch failed')}") from None
    return [str(job.job_id) for job in jobs]


def _last_line(text: str, default: str) -> str:
    lines = text.strip().splitlines() or [default]
    return lines[-1].removeprefix("sbatch: error: ").removeprefix("squeue: error: ")


@dataclasses.dataclass
class RunTask:
    """What an array task does with the name of its run. submitit pickles it, and again whenever it requeues the job.

    Slurm signals every process of a task, this one and its child. There are three ways to stop:

    submitit's signal    `signal_delay` before the time limit, and at a preemption where the cluster says so: submitit
                         calls `checkpoint` here, which stops the child, and requeues the job.
    SIGTERM              stops the child. After `scancel` and `scontrol requeue` Slurm knows what becomes of the job;
                         but a job that ends within the grace time of its preemption is over unless it requeues itself.
    the child stops      though nobody told this process: the job is requeued.

    So a child that has stopped always leads to `checkpoint`, and that asks Slurm whether the job is its own master.
    """

    command: tuple[str, ...]
    directory: str
    grace: float  # seconds
    _child: subprocess.Popen[bytes] | None = dataclasses.field(default=None, init=False)
    _got_sigterm: bool = dataclasses.field(default=False, init=False)

    def __call__(self, run: str) -> None:
        import submitit

        requeue = getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}")
        signal.pthread_sigmask(signal.SIG_BLOCK, [requeue])  # inherited by the child, which would die of it
        self._child = child = subprocess.Popen([*self.command, f"--only={run}"], cwd=self.directory)
        signal.signal(signal.SIGTERM, self._terminated)  # submitit's does nothing
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [requeue])
        _wait_for(child)
        code = child.wait()
        if code == 0:
            return
        if code not in STOPPED:
            raise RuntimeError(f"{run}: launch.py ended with {code}; its output is in this job's logs")
        signal.raise_signal(requeue)

    def _terminated(self, number: int, frame: object) -> None:
        self._got_sigterm = True
        if self._child:
            self._child.send_signal(signal.SIGTERM)

    def checkpoint(self, run: str) -> Any:
        """Called by submitit's signal handler: stops the child and returns what is to be done after the requeueing."""
        import submitit

        if self._child:
            self._child.send_signal(signal.SIGTERM)
            # One that does not make it in time is killed by the requeueing, and resumes from an older checkpoint.
            _wait_for(self._child, self.grace)
        # Slurm ends one that was sent SIGTERM, and does with it what it has decided; after a time limit, this decides.
        if not _undecided(SIGTERM_SECONDS if self._got_sigterm else SQUEUE_SECONDS):
            raise SystemExit(os.EX_TEMPFAIL)  # without a result
        return submitit.helpers.DelayedSubmission(dataclasses.replace(self), run)


def _undecided(patience: float) -> bool:
    """Whether this task is simply running: neither cancelled nor on its way back to the queue.

    Where many jobs stop at once, Slurm may be too busy to say it. After so many seconds the answer is yes.
    """
    import submitit

    job = submitit.JobEnvironment().job_id  # "17_3"; of one task per array, $SLURM_JOB_ID is the whole array's number
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    deadline = time.monotonic() + patience
    while True:
        timeout = min(SQUEUE_SECONDS, max(1.0, deadline - time.monotonic()))
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            result = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
            if result.returncode == 0 or "Invalid job id" in result.stderr:
                return result.stdout.strip() == "RUNNING"
        if time.monotonic() > deadline:
            return True
        time.sleep(SQUEUE_PAUSE)


def _wait_for(child: subprocess.Popen[bytes], seconds: float = math.inf) -> None:
    """Returns when the child has ended. Unlike its `wait`, this may be called in a signal handler that interrupted it.

    (`Popen.wait` holds a lock, for which a second one would wait for ever.)
    """
    deadline = time.monotonic() + seconds
    options = os.WEXITED | os.WNOWAIT | os.WNOHANG
    with contextlib.suppress(ChildProcessError):  # somebody has waited for it
        while os.waitid(os.P_PID, child.pid, options) is None and time.monotonic() < deadline:
            time.sleep(0.2)
