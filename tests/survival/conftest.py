"""Real faults in real processes: what a person then sees, and that nothing is lost."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from trainings import CLASSES, ENVIRONMENT, ROOT, RUN, SEEDS, command, encoded, folder, launch, result


@pytest.fixture(scope="session", autouse=True)
def proc():
    if not Path("/proc/self/stat").exists():
        pytest.skip("looks at processes in /proc")


@pytest.fixture
def start():
    """Starts a training, in a session of its own: whatever of it is left at the end of the test is killed."""
    started = []

    def start(workdir, *args, environment=ENVIRONMENT, launch=(), **overrides):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        line = command(workdir, *args, **overrides)
        line[: len(launch)] = launch  # in place of `python launch.py`
        process = subprocess.Popen(line, cwd=ROOT, env=environment, text=True, start_new_session=True, **pipes)
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """How an uninterrupted run ends."""
    workdir = tmp_path_factory.mktemp("digits")
    done = launch(workdir)
    assert done.returncode == 0, done.stderr
    return result(workdir / RUN)


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """How runs end that run one after the other, each on as many devices and cores as one of two has."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    workdir = tmp_path_factory.mktemp("alone")
    subprocess.run(
        command(workdir, only=SEEDS),
        cwd=ROOT,
        env=ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": "2"},
        preexec_fn=lambda: os.sched_setaffinity(0, cores[: len(cores) // 2]),
        check=True,
        capture_output=True,
        timeout=400,
    )
    return {run: result(workdir / run) for run in os.listdir(workdir) if "seed=" in run}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of as many pictures of noise as there are digits, and how an uninterrupted run on it ends."""
    root = tmp_path_factory.mktemp("pictures")
    for seed in range(96 + 50):
        path = root / ("train" if seed < 96 else "test") / f"class{seed % CLASSES}" / f"{seed}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(seed))
    workdir = tmp_path_factory.mktemp("on_demand")
    done = launch(workdir, **folder(root))
    assert done.returncode == 0, done.stderr
    return root, result(workdir / RUN)


@pytest.fixture(scope="session")
def prepared(pictures, tmp_path_factory):
    """The pictures as a TFDS data set."""
    out = tmp_path_factory.mktemp("prepared")
    preparing = [sys.executable, "-m", "squeezenet_jax", "prepare", pictures[0], "--name", "noise", "--out", out]
    done = subprocess.run(list(map(str, preparing)), cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def in_namespace(tmp_path_factory):
    """A folder to mount at, and what runs a shell script with mounts that nobody else sees: $1 is it, others follow."""
    place = tmp_path_factory.mktemp("disk")

    def run(script, arguments):
        mounting = ["unshare", "-rm", "sh", "-euc", script, "sh", str(place), *arguments]
        return subprocess.run(mounting, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=250)

    if not shutil.which("unshare"):
        pytest.skip("needs unshare, of util-linux")
    tried = run('mount -t tmpfs none "$1"; mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"', [])
    if tried.returncode:
        pytest.skip(f"mounting in a namespace is not allowed here ({tried.stderr.strip()})")
    return place, run
