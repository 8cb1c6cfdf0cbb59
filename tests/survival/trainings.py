"""Trainings in processes of their own that a fault can hit, and what must be the same whatever happened to them.

They all have the same settings, so that one of them compiles and the others do not; how an uninterrupted one ends is
what the others must end with, bit for bit.
"""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_settings import TINY, as_flags, dotted

from squeezenet_jax.runs import checkpoint

ROOT = Path(__file__).parents[2]
RUN = "bypass=none,seed=0"
SEEDS = "bypass=none,seed=0,seed=1,seed=2"
DEVICES = "4"  # of two runs at a time, each with two
CONFIG = TINY | {
    "model.kernel_init": "he_uniform",
    "data.channels": 3,
    "train.epochs": 60.0,
    "train.eval_every_epochs": 10.0,
}
TOTAL_STEPS = 360
ON_DEMAND = {  # decoded when they are asked for
    "data.train_split": "train",
    "data.eval_split": "test",
    "data.crop": "random_resized",
    "data.crop_min_area": 0.5,
    "data.eval_resize": 12,
}
CLASSES = 10
ENVIRONMENT = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}


def command(workdir, *args, only=RUN, **overrides):
    flags = as_flags(CONFIG | dotted(overrides))
    experiment = ["--config", "experiments/bypass.py", "--only", only]
    return [sys.executable, "launch.py", *experiment, *flags, "--workdir", str(workdir), *args]


def launch(workdir, **overrides):
    return subprocess.run(
        command(workdir, **overrides), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=200
    )


def two_at_a_time(start, workdir):
    return start(workdir, "--jobs=2", environment=ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": DEVICES}, only=SEEDS)


def descendants(pid):
    """Processes that are below it now."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.parent.name)] = int(fields[1])
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return below - {pid}


def wait_until(condition, *processes, seconds=120, pause=0.005):
    """Waits for something that happens while these processes run."""
    deadline = time.monotonic() + seconds
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(pause)


def kill(process):
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL


def finish(process):
    output = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def newest(run):
    return max(checkpoint.steps(run / "checkpoints"), default=0)


def status(run):
    return json.loads((run / "status.json").read_text())["status"]


def metrics(run, split):
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["split"] == split]


def result(run):
    """What must not depend on what happened on the way."""
    step, arrays = checkpoint.read_newest(run / "checkpoints")
    losses = [(record["step"], record["loss"]) for record in metrics(run, "train")]
    return step, arrays, metrics(run, "eval"), losses


def assert_same(run, expected, *, same_windows=True):
    """`same_windows`: it was resumed from regular checkpoints only, so that its log lines are the same, too."""
    step, arrays, evaluations, losses = result(run)
    expected_step, expected_arrays, expected_evaluations, expected_losses = expected
    assert step == expected_step == TOTAL_STEPS
    assert evaluations == expected_evaluations
    steps = [step for step, _ in losses]
    assert steps == sorted(set(steps)) and steps[-1] == TOTAL_STEPS
    if same_windows:
        assert losses == expected_losses
    assert arrays.keys() == expected_arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected_arrays[name], err_msg=name)
    assert not list(run.glob(".*")) + list(run.glob("checkpoints/.*"))  # scratch files


def one_line(stderr, *parts):
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def encoded(seed, kind="JPEG", mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def folder(root, **overrides):
    return ON_DEMAND | {"data.name": "folder", "data.dir": root} | overrides


def tfds(data_dir, **overrides):
    return ON_DEMAND | {"data.name": "noise", "data.dir": data_dir} | overrides
