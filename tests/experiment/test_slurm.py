"""Sweeps on Slurm, without one: what may be asked for, what is refused, and what a task will run."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import types

import pytest
from loopback import Answer, serve
from slurm_launch import BYPASS, ON_SLURM, ROOT, launch

from experiments import base
from squeezenet_jax.experiment import planning, slurm
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights import named


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", slurm.Options()),
        ("partition=gpu,time=240,gpus=1", slurm.Options(partition="gpu", time=240, gpus=1)),
        ("time=4:00:00", slurm.Options(time=240)),
        ("time=0:05:01", slurm.Options(time=6)),
        ("time=1-06:30:00", slurm.Options(time=1830)),
        ("memory=1.5, cpus=8, max_parallel=4", slurm.Options(memory=1.5, cpus=8, max_parallel=4)),
        ("account=a,qos=long,signal_delay=300", slurm.Options(account="a", qos="long", signal_delay=300)),
    ],
)
def test_options(text, expected):
    assert slurm.parse_options(text) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("partiton=gpu", ['"partiton"', "allowed: partition, time, gpus", 'did you mean "partition"']),
        ("gpu", ['"gpu"', 'did you mean "gpus"']),
        ("gpus=two", ['--slurm gpus: "two"', "whole number from 1", "the options are partition, time"]),
        ("cpus=0", ['--slurm cpus: "0"', "whole number"]),
        ("memory=4G", ['--slurm memory: "4G"', "GB"]),
        ("time=4h", ['--slurm time: "4h"', "minutes, H:MM:SS or D-HH:MM:SS"]),
        ("time=4:75:00", ["--slurm time"]),
        ("time=2", ["--slurm time: 2 min with signal_delay=120; at least 4"]),
        ("partition=", ["--slurm partition", "a name"]),
        ("gpus=1,gpus=2", ["--slurm gpus: given twice"]),
    ],
)
def test_wrong_options_are_one_line(text, parts):
    with pytest.raises(UserError) as caught:
        slurm.parse_options(text)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.fixture
def fake_programs(tmp_path):
    """An environment with programs of Slurm's names, and with a submitit that cannot be imported."""
    for name in ("sbatch", "srun"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\nexit 1\n")
        program.chmod(0o755)
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "submitit.py").write_text("raise ImportError")
    return os.environ | {"PATH": str(tmp_path / "bin"), "PYTHONPATH": str(tmp_path / "packages")}


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([*BYPASS, "--launcher", "slrum"], ["--launcher", "local, slurm", 'did you mean "slurm"']),
        ([*BYPASS, "--slurm", "gpus=1"], ["--slurm", "--launcher slurm"]),
        ([*ON_SLURM, "--slurm", "gpu=1"], ["--slurm", 'did you mean "gpus"']),
        ([*ON_SLURM], ["submitit", "pip install -r requirements-slurm.txt"]),
        ([*BYPASS, "--report"], ["holds no runs yet"]),
    ],
    ids=lambda value: " ".join(value[2:]),
)
def test_wrong_input_is_one_line_and_submits_nothing(args, parts, tmp_path, fake_programs):
    result = launch(*args, "--workdir", str(tmp_path / "runs"), env=fake_programs)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    for part in parts:
        assert part in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["echo RUNNING"], True),
        (["echo CANCELLED"], False),
        (["echo busy >&2; exit 1", "echo CANCELLED"], False),
        (["echo busy >&2; exit 1"] * 9, "in doubt"),
        (["echo slurm_load_jobs error: Invalid job id specified >&2; exit 1"], False),
    ],
)
def test_a_squeue_that_fails_says_nothing_about_a_task(answers, expected, tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="pip install -r requirements-slurm.txt")
    program = tmp_path / "squeue"
    program.write_text(f"#!/bin/sh\nfor script in {tmp_path}/?.sh; do sh $script; exit $?; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("_TEST_CLUSTER_", "slurm")  # submitit's own, in place of what it finds
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(slurm, "SQUEUE_PAUSE", 0.2)
    for patience in (0.5, 60) if expected == "in doubt" else (60,):
        for number, answer in enumerate([*answers, "echo CANCELLED"]):
            (tmp_path / f"{number}.sh").write_text(f"rm $0\n{answer}\n")
        assert slurm._undecided(patience) == (patience < 1 if expected == "in doubt" else expected)


def test_a_squeue_that_hangs_or_is_not_there_is_not_waited_for(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="pip install -r requirements-slurm.txt")
    program = tmp_path / "squeue"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("_TEST_CLUSTER_", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(slurm, "SQUEUE_PAUSE", 0.1)
    for path in (f"{tmp_path}:{os.environ['PATH']}", str(tmp_path / "nothing")):
        monkeypatch.setenv("PATH", path)
        began = time.monotonic()
        assert slurm._undecided(0.2)
        assert time.monotonic() - began < 20


def test_tasks_run_the_launch_py_that_submitted_them_wherever_the_package_is_installed(tmp_path):
    submitit = pytest.importorskip("submitit", reason="pip install -r requirements-slurm.txt")
    for folder in ("bin", "site-packages", "checkout"):
        (tmp_path / folder).mkdir()
    (tmp_path / "site-packages" / "squeezenet_jax").symlink_to(ROOT / "squeezenet_jax")
    shutil.copy(ROOT / "launch.py", tmp_path / "checkout")
    shutil.copytree(ROOT / "experiments", tmp_path / "checkout" / "experiments")
    for name in ("sbatch", "srun"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\necho Submitted batch job 17\n")
        (tmp_path / "bin" / name).chmod(0o755)
    path, launcher = f"{tmp_path / 'bin'}:{os.environ['PATH']}", tmp_path / "checkout" / "launch.py"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(tmp_path / "site-packages")}

    command = [sys.executable, str(launcher), *ON_SLURM, "--workdir", str(tmp_path / "runs")]
    result = subprocess.run(command, env=env, cwd=launcher.parent, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    logs = tmp_path / "runs" / "slurm"
    assert f"export PYTHONPATH={launcher.parent}" in (logs / "17_submission.sh").read_text()
    task = submitit.core.utils.DelayedSubmission.load(logs / "17_0_submitted.pkl").function
    assert str(launcher) in task.command


def test_weights_that_have_a_name_are_downloaded_before_anything_is_submitted(tmp_path, monkeypatch):
    module = types.ModuleType("toy")
    module.BASELINE, module.sweep = {}, lambda: ({"seed": seed} for seed in (0, 1))
    config = base.get_config().to_dict()
    config["model"]["init_from"] = "torchvision:squeezenet1_1"
    plan = planning.plan(module, "digits", config, ())
    kept, submitted = tmp_path / "weights", []

    def submit_array(task, runs, options, logs, *others):
        logs.mkdir()
        assert [path.name for path in kept.iterdir()] == [named.TORCHVISION["squeezenet1_1"]]
        submitted.extend(runs)
        return ["17_0", "17_1"]

    def submit():
        return slurm.submit(plan, tmp_path / "runs", slurm.Options(), ROOT / "launch.py", [])

    monkeypatch.setattr(slurm, "check_installed", lambda: None)
    monkeypatch.setattr(slurm, "_submit_array", submit_array)
    monkeypatch.setattr(slurm, "_queue", set)
    monkeypatch.setenv("SQUEEZENET_JAX_WEIGHTS", str(kept))
    content = b"weights"
    monkeypatch.setitem(named.TORCHVISION, "squeezenet1_1", f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth")
    answers = []
    with serve(lambda path: answers.pop() if answers else Answer()) as server:
        monkeypatch.setenv("SQUEEZENET_JAX_TORCHVISION_URL", server.url)
        with pytest.raises(UserError, match=r"^model.init_from: torchvision:squeezenet1_1: .* \(404 Not Found\)"):
            submit()
        assert not (tmp_path / "runs").exists() and not submitted
        answers.append(Answer(200, content))
        assert submit().runs == tuple(submitted) == ("seed=0", "seed=1")


NOWHERE = os.environ | {"PATH": "/nonexistent"}


def test_without_slurm_a_line_says_so(tmp_path):
    result = launch(*ON_SLURM, "--workdir", str(tmp_path / "runs"), env=NOWHERE)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: --launcher slurm: no sbatch on the PATH; submit from a machine of the Slurm cluster\n"
    )
    assert not (tmp_path / "runs").exists()


def test_what_is_finished_is_not_submitted_and_the_report_can_be_had_alone(tmp_path):
    for bypass in ("none", "simple", "complex"):
        for seed in range(3):
            run = tmp_path / f"bypass={bypass},seed={seed}"
            run.mkdir()
            (run / "status.json").write_text(json.dumps({"status": "diverged"}))
    args = [*ON_SLURM, "--workdir", str(tmp_path)]
    result = launch(*args, env=NOWHERE)
    assert result.returncode == 0, result.stderr
    assert "nothing to submit" in result.stdout
    assert "bypass=complex" in result.stdout  # the table
    (tmp_path / "report.html").unlink()
    (run / "status.json").write_text(json.dumps({"status": "running"}))
    result = launch(*args, "--report", env=NOWHERE)
    assert result.returncode == 0, result.stderr
    assert "bypass=complex" in (tmp_path / "report.html").read_text()
    result = launch(*args, "--report", "--config.optimizer.peak_lr=0.5", env=NOWHERE)
    assert (result.returncode, "optimizer.peak_lr is 0.002 there" in result.stderr) == (2, True)
