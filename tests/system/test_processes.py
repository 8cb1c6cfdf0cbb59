"""Two real processes that train together (jax.distributed over gloo) are one process, and stop at one step."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_settings import TINY, as_flags, dotted

from squeezenet_jax.runs import checkpoint
from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.system import processes
from squeezenet_jax.system.errors import UserError

ROOT = Path(__file__).parents[2]
# SGD: Adam divides by gradients near 0 and turns rounding into steps.
CONFIG = TINY | {"optimizer.name": "sgd", "optimizer.peak_lr": 0.05, "data.crop_padding": 1, "train.epochs": 4.0}
TOTAL_STEPS = 24
STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Of what a test starts, whatever it ends with."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


def start(workdir, *args, devices, **overrides):
    command = [sys.executable, "launch.py", "--config", "experiments/bypass.py", "--only", "bypass=simple,seed=1"]
    command += [*as_flags(CONFIG | dotted(overrides)), "--workdir", str(workdir), *args]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    STARTED.append(process)
    return process


def join_flags(count):
    """Of processes that meet at a port which is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return [f"--coordinator=127.0.0.1:{probe.getsockname()[1]}", f"--num-processes={count}"]


def start_two(workdir, devices=2, **overrides):
    together = join_flags(2)
    # A workdir of its own for the second: only the main process may need one.
    return [
        start(directory, *together, f"--process-id={index}", devices=devices, **overrides)
        for index, directory in enumerate((workdir, workdir.with_name("unused")))
    ]


def finish(*started):
    for process in started:
        output = process.communicate(timeout=250)
        assert process.returncode == 0, "\n".join(output)


def results(workdir):
    run = workdir / "bypass=simple,seed=1"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return metrics, checkpoint.read_newest(run / "checkpoints")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone")
    finish(start(workdir, devices=8))
    return results(workdir)


def assert_same(results, expected, total_steps=TOTAL_STEPS):
    (metrics, (step, arrays)), (expected_metrics, (expected_step, expected_arrays)) = results, expected
    assert [r["step"] for r in metrics] == [r["step"] for r in expected_metrics]
    for split in ("train", "eval"):
        losses, expected_losses = ([r["loss"] for r in m if r["split"] == split] for m in (metrics, expected_metrics))
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert {r["count"] for r in metrics if r["split"] == "eval"} == {50}
    assert step == expected_step == total_steps
    for name, array in arrays.items():
        np.testing.assert_allclose(array, expected_arrays[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_two_processes_train_like_one(tmp_path, alone):
    finish(*start_two(tmp_path / "two"))
    assert_same(results(tmp_path / "two"), alone)
    assert not (tmp_path / "unused").exists()
    # As if a stop had cut the last evaluation short: the next start makes it.
    directory = RunDirectory(tmp_path / "two" / "bypass=simple,seed=1")
    *lines, _ = (directory.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory.path / "metrics.jsonl").write_text("".join(lines))
    directory.write_status("preempted")
    finish(*start_two(tmp_path / "two"))
    assert_same(results(tmp_path / "two"), alone)


def test_a_signal_to_one_of_two_stops_both_at_the_same_step_and_they_resume(tmp_path):
    # A SIGTERM may be heard a second late, some tens of steps: long enough not to end before.
    overrides = {"train.epochs": 20.0, "train.eval_every_epochs": 10.0, "train.checkpoint_every_steps": 5}
    overrides["model.kernel_init"] = "he_uniform"
    finish(start(tmp_path / "alone", devices=2, **overrides))
    run = tmp_path / "two" / "bypass=simple,seed=1"
    stopped_at = 0
    for number, to in ((signal.SIGTERM, 1), (signal.SIGINT, 0)):
        started = start_two(tmp_path / "two", devices=1, **overrides)
        deadline = time.monotonic() + 200
        while max(checkpoint.steps(run / "checkpoints"), default=0) <= stopped_at:
            assert time.monotonic() < deadline
            assert [process.poll() for process in started] == [None, None]
            time.sleep(0.01)
        started[to].send_signal(number)
        for process in started:
            process.communicate(timeout=100)
        assert [process.returncode for process in started] == [75, 75]
        assert RunDirectory(run).status == "preempted"
        newest = checkpoint.steps(run / "checkpoints")[-1]
        assert stopped_at < newest < 120
        stopped_at = newest
    finish(*start_two(tmp_path / "two", devices=1, **overrides))
    (metrics, state), (expected_metrics, expected_state) = results(tmp_path / "two"), results(tmp_path / "alone")
    evaluations, expected = ([r for r in m if r["split"] == "eval"] for m in (metrics, expected_metrics))
    assert_same((evaluations, state), (expected, expected_state), total_steps=120)
    steps = [r["step"] for r in metrics if r["split"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == 120


def test_one_process_is_the_main_one_and_agrees_with_itself():
    assert processes.is_main() and not processes.several()
    assert processes.from_main({"a": [1]}) == {"a": [1]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", None, 0), "--num-processes: is missing; all of --coordinator, --num-processes, --process-id"),
        (("host", 2, 0), "--coordinator: host is not allowed; it must be host:port"),
        (("host:1", 2, 2), "--process-id: 2 is not allowed; it must be from 0 to 1"),
        (("host:1", 0, 0), "--num-processes: 0 is not allowed"),
    ],
)
def test_wrong_flags_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        processes.join(*given)


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        (SLURM | {"SLURM_NTASKS": "1"}, False),  # a task of the array that `--launcher slurm` submits
        (SLURM | {"SLURM_NTASKS": "4"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, False),  # in the batch script, outside srun
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_a_cluster_is_detected(environ, expected):
    assert processes.detected(environ) is expected


def test_a_single_process_that_joined_still_hears_a_signal(tmp_path):
    workdir = tmp_path / "one"
    process = start(
        workdir, *join_flags(1), "--process-id=0", devices=1, train__epochs=200.0, train__checkpoint_every_steps=5
    )
    deadline = time.monotonic() + 200
    while not checkpoint.steps(workdir / "bypass=simple,seed=1/checkpoints"):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    assert process.returncode == 75
    status = json.loads((workdir / "bypass=simple,seed=1/status.json").read_text())["status"]
    assert status == "preempted"


def test_processes_that_were_told_different_things_are_refused(tmp_path):
    together = join_flags(2)
    first = start(tmp_path / "a", *together, "--process-id=0", devices=2)
    second = start(tmp_path / "b", *together, "--process-id=1", devices=2, optimizer__peak_lr=0.01)
    outputs = [process.communicate(timeout=200) for process in (first, second)]
    assert second.returncode == 2
    assert "the configuration: process 1 has" in outputs[1][1]
    assert first.returncode != 0
