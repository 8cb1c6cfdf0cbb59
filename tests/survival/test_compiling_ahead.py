"""The next setting's programs are compiled beside runs: they train as alone, and whatever ends them ends that, too."""

import os
import signal
import sys
from pathlib import Path

import pytest
from test_side_by_side import has_ended
from trainings import ENVIRONMENT, RUN, assert_same, descendants, finish, newest, status, wait_until

BOTH = "bypass=none,bypass=simple,seed=0"
NEXT = "bypass=simple,seed=0"


@pytest.fixture
def start_both(start, tmp_path):
    """Starts both runs, as if a core were idle, with an empty cache of compiled programs: (process, that cache)."""

    def start_both(**overrides):
        cache = tmp_path / "cache"
        environment = ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
        launch = [sys.executable, str(Path(__file__).with_name("idle_launch.py"))]
        return start(tmp_path / "runs", only=BOTH, environment=environment, launch=launch, **overrides), cache

    return start_both


def training_steps(cache):
    return len(list(cache.glob("jit_train_step-*-cache")))


@pytest.mark.slow
@pytest.mark.long
def test_both_end_as_alone_and_no_program_is_compiled_twice(start_both, tmp_path, digits):
    process, cache = start_both()
    wait_until(lambda: descendants(process.pid), process)
    finish(process)
    assert_same(tmp_path / "runs" / RUN, digits)
    assert status(tmp_path / "runs" / NEXT) in ("done", "stalled")
    assert training_steps(cache) == 2


@pytest.mark.slow
@pytest.mark.long
def test_a_program_is_there_before_its_run_begins_and_a_stop_ends_as_any_other(start_both, tmp_path):
    process, cache = start_both(**{"train.epochs": 1e6})
    wait_until(lambda: training_steps(cache) == 2, process)
    run = tmp_path / "runs" / RUN
    wait_until(lambda: newest(run), process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=100)
    assert process.returncode == 75, output
    assert status(run) == "preempted" and not (tmp_path / "runs" / NEXT).exists()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_run_ends_the_process_that_compiles(start_both, number):
    process, cache = start_both(**{"train.epochs": 1e6})
    wait_until(lambda: training_steps(cache) == 1, process)
    (compiling,) = (pid for pid in descendants(process.pid) if b"spawn_main" in cmdline(pid))
    os.kill(compiling, signal.SIGSTOP)  # it would be quick
    process.send_signal(number)
    if number == signal.SIGKILL:
        process.wait()
        os.kill(compiling, signal.SIGCONT)
    process.communicate(timeout=100)
    assert process.returncode == (75 if number == signal.SIGTERM else -number)
    wait_until(lambda: has_ended(compiling), seconds=10)


def cmdline(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()
