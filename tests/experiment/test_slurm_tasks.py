"""Sweeps on a real Slurm, on this machine, that is started and stopped here."""

import json
import signal
import subprocess
import sys
import time

import pytest
import slurm_cluster
from slurm_launch import ON_SLURM, ROOT, launch
from tiny_settings import SHRUNK, as_flags

from squeezenet_jax.experiment import slurm


def wait_until(true, seconds, what):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    pytest.importorskip("submitit", reason="pip install -r requirements-slurm.txt")
    if slurm_cluster.missing():
        pytest.skip(slurm_cluster.missing())
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture
def ask(cluster, monkeypatch):
    """Runs one of Slurm's commands; what submits from this process finds the cluster, too."""
    monkeypatch.setenv("SLURM_CONF", cluster["SLURM_CONF"])

    def ask(*command):
        result = subprocess.run(command, env=cluster, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, f"{command}: {result.stderr}"
        return result.stdout.strip()

    yield ask
    ask("scancel", "--user=root")
    wait_until(lambda: not ask("squeue", "--noheader"), 60, "jobs that do not end")


def state(ask, job):
    return ask("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")


def start_now(ask, job):
    """A requeued job would wait for two minutes. Within the second of its end a node refuses to start it again."""
    time.sleep(2)
    ask("scontrol", "update", f"JobId={job}", "StartTime=now")


CHILD = """
import os, signal, sys, time
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
if "SLURM_RESTART_COUNT" in os.environ:
    sys.exit(print("resumed", *sys.argv[1:], flush=True))
print("training", flush=True)
while not stop and "ALONE" not in os.environ and os.getppid() != 1:
    time.sleep(0.05)
time.sleep(1.5)
print("checkpoint written", flush=True)
sys.exit(75)
"""


def submit_child(tmp_path, code=CHILD, options="time=10,cpus=1"):
    """(job, its log) of a task with another program in the place of launch.py."""
    parsed = slurm.parse_options(options)
    task = slurm.RunTask((sys.executable, "-c", code), str(tmp_path), parsed.grace)
    (job,) = slurm._submit_array(task, ["a=1"], parsed, tmp_path / "logs", ROOT, "test")
    log = tmp_path / "logs" / f"{job}_0_log.out"
    wait_until(lambda: log.exists() and "training" in log.read_text(), 30, lambda: f"{job} does not start")
    return job, log


def urgent(ask):
    return ask("sbatch", "--partition=urgent", "--cpus-per-task=2", "--output=/dev/null", "--wrap=true")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    "stop",
    [
        lambda ask, job: ask("scancel", "--signal=USR2", job),
        lambda ask, job: ask("scancel", "--signal=TERM", job),
        lambda ask, job: ask("scontrol", "requeue", job),
        lambda ask, job: ask("scancel", "--signal=USR2", job) + ask("scontrol", "requeue", job),
        lambda ask, job: urgent(ask),
        lambda ask, job: None,
    ],
    ids=["time limit's signal", "SIGTERM", "requeue", "signal and requeue", "preemption", "child alone"],
)
def test_a_stopped_task_writes_its_checkpoint_and_is_queued_again(ask, tmp_path, monkeypatch, stop, request):
    if request.node.callspec.id == "child alone":
        monkeypatch.setenv("ALONE", "1")
    job, log = submit_child(tmp_path)
    stop(ask, job)
    wait_until(lambda: state(ask, job) == "PENDING", 60, lambda: f"{state(ask, job)}\n{log.read_text()}")
    assert log.read_text().count("checkpoint written") == 1
    start_now(ask, job)
    wait_until(lambda: state(ask, job) == "COMPLETED", 60, lambda: f"{state(ask, job)}\n{log.read_text()}")
    assert log.read_text().count("resumed --only=a=1") == 1


@pytest.mark.slow
@pytest.mark.parametrize("during_checkpoint", [False, True])
def test_a_cancelled_task_writes_its_checkpoint_and_does_not_come_back(ask, tmp_path, during_checkpoint):
    job, log = submit_child(tmp_path)
    if during_checkpoint:
        ask("scancel", "--signal=USR2", job)
        time.sleep(0.5)
    ask("scancel", job)
    wait_until(lambda: state(ask, job) == "CANCELLED", 60, lambda: f"{state(ask, job)}\n{log.read_text()}")
    assert log.read_text().count("checkpoint written") == 1


@pytest.mark.slow
def test_a_child_that_does_not_stop_in_time_is_killed_and_its_task_is_queued_again(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm.Options, "grace", 1.0)
    stubborn = CHILD.replace("while not stop and", "while")
    job, log = submit_child(tmp_path, stubborn)
    ask("scancel", "--signal=USR2", job)
    wait_until(lambda: "Requeued job" in log.read_text(), 30, log.read_text)
    wait_until(lambda: state(ask, job) == "PENDING", 60, lambda: f"{state(ask, job)}\n{log.read_text()}")
    assert "checkpoint written" not in log.read_text()


LONG = as_flags(SHRUNK | {"train.epochs": 100.0, "train.eval_every_epochs": 50.0, "train.checkpoint_every_steps": 50})
TOTAL_STEPS = 600


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.long
def test_a_sweep_is_an_array_whose_tasks_are_stopped_resumed_and_reported(ask, cluster, tmp_path):
    # Eight virtual devices on a loaded machine can wait for each other for ever, inside XLA; that is not tested here.
    cluster = cluster | {"JAX_NUM_CPU_DEVICES": "1"}
    workdir = tmp_path / "runs"
    args = [*ON_SLURM, *LONG, "--only", "bypass=none,seed=0,seed=1", "--workdir", str(workdir)]
    args += ["--slurm", "partition=gpu,time=30,gpus=1,cpus=1"]
    result = launch(*args, env=cluster)
    assert result.returncode == 0, result.stderr
    array = result.stdout.split("submitted job ")[1].split(":")[0]
    assert "2 to do" in result.stdout
    assert f"logs: {workdir / 'slurm'}" in result.stdout
    assert "--report" in result.stdout
    jobs = {f"bypass=none,seed={number}": f"{array}_{number}" for number in (0, 1)}
    again = launch(*args, env=cluster)
    assert again.returncode == 0, again.stderr
    assert "already queued or running: bypass=none,seed=0, bypass=none,seed=1" in again.stdout
    other = launch(*args, "--config.optimizer.peak_lr=0.5", env=cluster)
    assert (other.returncode, "optimizer.peak_lr is 0.002 there, 0.5 here" in other.stderr) == (2, True)

    def everything():
        return "\n".join(
            [ask("squeue", "--states=all"), *(log.read_text()[-3000:] for log in workdir.glob("slurm/*log*"))]
        )

    signals = {"bypass=none,seed=0": signal.SIGUSR2, "bypass=none,seed=1": signal.SIGTERM}

    def stopped_in_training():
        for run in list(signals):
            if list((workdir / run).glob("checkpoints/*.safetensors")):
                ask("scancel", f"--signal={signals.pop(run).name.removeprefix('SIG')}", jobs[run])
        return not signals

    wait_until(stopped_in_training, 200, everything)
    wait_until(lambda: {state(ask, job) for job in jobs.values()} == {"PENDING"}, 120, everything)
    for run, job in jobs.items():
        assert json.loads((workdir / run / "status.json").read_text())["status"] == "preempted"
        start_now(ask, job)
    wait_until(lambda: {state(ask, job) for job in jobs.values()} == {"COMPLETED"}, 200, everything)

    for run, job in jobs.items():
        assert json.loads((workdir / run / "status.json").read_text())["status"] in ("done", "stalled")
        assert len(json.loads((workdir / run / "run.json").read_text())["earlier_starts"]) == 1
        assert "resumed at step" in (workdir / "slurm" / f"{job}_0_log.out").read_text()
        metrics = [json.loads(line) for line in (workdir / run / "metrics.jsonl").read_text().splitlines()]
        for split in ("train", "eval"):
            steps = [record["step"] for record in metrics if record["split"] == split]
            assert steps == sorted(set(steps))
            assert steps[-1] == TOTAL_STEPS
    result = launch(*args, "--report", env=cluster)
    assert result.returncode == 0, result.stderr
    report = json.loads((workdir / "report.json").read_text())
    assert {row["name"]: row["n"] for row in report["rows"]} == {
        "bypass=none": 2,
        "bypass=simple": 0,
        "bypass=complex": 0,
    }
    assert "nothing to submit" in launch(*args, env=cluster).stdout


@pytest.mark.slow
def test_a_run_that_fails_is_a_failed_task_with_its_output_in_the_log(ask, cluster, tmp_path):
    args = [*ON_SLURM, *LONG, "--config.train.batch_size=33", "--only", "bypass=none,seed=0"]
    result = launch(*args, "--workdir", str(tmp_path / "runs"), env=cluster)
    assert result.returncode == 0, result.stderr
    job = result.stdout.split("submitted job ")[1].split(":")[0]
    log = tmp_path / "runs" / "slurm" / f"{job}_0_log.err"
    wait_until(lambda: state(ask, job) == "FAILED", 100, lambda: f"{state(ask, job)}\n{log.read_text()}")
    assert "error: train.batch_size: 33 is not a multiple of the 8 devices" in log.read_text()
    assert "bypass=none,seed=0: launch.py ended with 2" in log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.long
def test_a_tuned_sweep_is_two_arrays_of_which_the_second_waits_for_the_first(ask, cluster, tmp_path):
    args = [*ON_SLURM, *as_flags(SHRUNK), "--tune", "--grid", "optimizer.peak_lr=0.001,0.9", "--workdir", str(tmp_path)]
    args += ["--only", "bypass=none,seed=0", "--slurm", "partition=gpu,time=30,gpus=1,cpus=1"]
    result = launch(*args, env=cluster | {"JAX_NUM_CPU_DEVICES": "1"})
    assert result.returncode == 0, result.stderr
    trials, runs = (part.split(":")[0] for part in result.stdout.split("submitted job ")[1:])
    assert f"afterany:{trials}" in ask("scontrol", "show", "job", runs)
    logs = lambda: "\n".join(log.read_text()[-3000:] for log in tmp_path.glob("**/*_log.*"))  # noqa: E731
    wait_until(lambda: not ask("squeue", "--noheader"), 200, logs)
    assert json.loads((tmp_path / "bypass=none,seed=0" / "status.json").read_text())["status"] in ("done", "stalled")
    assert json.loads((tmp_path / "tuning.json").read_text())["settings"].keys() == {"bypass=none"}
    assert "nothing to submit" in launch(*args, env=cluster).stdout


def test_what_sbatch_refuses_is_one_line(ask, cluster, tmp_path):
    result = launch(*ON_SLURM, "--slurm", "partition=no", "--workdir", str(tmp_path / "runs"), env=cluster)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert "nvalid partition" in result.stderr
