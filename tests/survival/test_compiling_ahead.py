"""The next setting's programs are compiled beside runs: they train as alone, and whatever ends them ends that, too."""

import os
import signal
import sys
from pathlib import Path

import pytest
from test_side_by_side import has_ended
from trainings import ENVIRONMENT, RUN, assert_same, descendants, finish, newest, status, wait_until

from squeezenet_jax.experiment.ahead import SCRATCH

BOTH = "bypass=none,bypass=simple,seed=0"
NEXT = "bypass=simple,seed=0"


@pytest.fixture
def start_both(start, tmp_path):
    """Starts both runs, as if a core were idle, with an empty cache of compiled programs: (process, that cache)."""

    def start_both(**overrides):
        cache = tmp_path / "cache"
        (tmp_path / "tmp").mkdir(exist_ok=True)
        environment = ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": str(cache), "TMPDIR": str(tmp_path / "tmp")}
        launch = [sys.executable, str(Path(__file__).with_name("idle_launch.py"))]
        return start(tmp_path / "runs", only=BOTH, environment=environment, launch=launch, **overrides), cache

    return start_both


def training_steps(cache):
    return len(list(cache.glob("jit_train_step-*-cache")))


def compiling(process):
    """The process that compiles ahead."""
    found = [pid for pid in descendants(process.pid) if b"spawn_main" in cmdline(pid)]
    return found[0] if found else None


def cmdline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


@pytest.mark.slow
@pytest.mark.long
def test_programs_are_there_before_their_run_begins_which_compiles_none_and_ends_as_alone(start_both, tmp_path, digits):
    process, cache = start_both()
    runs = tmp_path / "runs"
    wait_until(lambda: compiling(process), process)
    compiler = compiling(process)
    wait_until(lambda: newest(runs / RUN), process)
    os.kill(process.pid, signal.SIGSTOP)
    wait_until(lambda: has_ended(compiler), process)
    assert training_steps(cache) == 2 and not (runs / NEXT).exists()
    os.kill(process.pid, signal.SIGCONT)
    finish(process)
    assert training_steps(cache) == 2
    assert_same(runs / RUN, digits)
    assert status(runs / NEXT) in ("done", "stalled")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_run_ends_the_process_that_compiles(start_both, tmp_path, number):
    process, _ = start_both(**{"train.epochs": 1e6})
    wait_until(lambda: compiling(process) and list(tmp_path.glob(f"tmp/{SCRATCH}*")), process)
    compiler = compiling(process)
    os.kill(compiler, signal.SIGSTOP)  # it would be quick
    wait_until(lambda: newest(tmp_path / "runs" / RUN), process)
    process.send_signal(number)
    if number == signal.SIGKILL:
        process.wait()
        os.kill(compiler, signal.SIGCONT)
    output = process.communicate(timeout=100)
    assert process.returncode == (75 if number == signal.SIGTERM else -number), output
    wait_until(lambda: has_ended(compiler), seconds=10)
    assert not (tmp_path / "runs" / NEXT).exists()
    assert not list(tmp_path.glob(f"tmp/{SCRATCH}*"))
