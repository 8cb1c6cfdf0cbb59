"""Processes that train together, for tests of them; whatever a test starts is ended with it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_settings import TINY, as_flags, dotted

from squeezenet_jax.runs import checkpoint

ROOT = Path(__file__).parents[1]
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


def assert_same(results, expected, total_steps=TOTAL_STEPS, rtol=1e-5, optimizer=True):
    """`optimizer`: its state, too. Else each array is compared on its own scale: behind a batch norm, a channel's mean
    can be 0 but for rounding, whatever the others are.
    """
    (metrics, (step, arrays)), (expected_metrics, (expected_step, expected_arrays)) = results, expected
    assert [r["step"] for r in metrics] == [r["step"] for r in expected_metrics]
    for split in ("train", "eval"):
        losses, expected_losses = ([r["loss"] for r in m if r["split"] == split] for m in (metrics, expected_metrics))
        np.testing.assert_allclose(losses, expected_losses, rtol=rtol)
    assert {r["count"] for r in metrics if r["split"] == "eval"} == {50}
    assert step == expected_step == total_steps
    for name, array in arrays.items():
        if name.startswith("opt_state") and not optimizer:
            continue
        expected = expected_arrays[name]
        atol = 1e-5 if optimizer else max(1e-5, 1e-3 * float(np.abs(expected).max(initial=0)))
        np.testing.assert_allclose(array, expected, rtol=1e-3, atol=atol, err_msg=name)
