"""Several processes are started in one workdir."""

import json
import os
import signal

import pytest
from trainings import RUN, TOTAL_STEPS, assert_same, finish, kill, launch, newest, one_line, wait_until


@pytest.mark.slow
@pytest.mark.long
def test_two_starts_share_the_runs_of_a_workdir(tmp_path, digits, start):
    runs = [tmp_path / f"bypass=none,seed={seed}" for seed in (0, 1)]
    both = {"only": "bypass=none,seed=0,seed=1"}
    first = start(tmp_path, **both)
    wait_until((runs[0] / "run.json").exists, first)
    first.send_signal(signal.SIGSTOP)  # as slow as it takes
    second = start(tmp_path, **both)
    wait_until((runs[1] / "run.json").exists, second)
    first.send_signal(signal.SIGCONT)
    outputs = [finish(process)[0] for process in (first, second)]
    assert f"is being run by {os.uname().nodename}, process {first.pid}" in outputs[1]
    for number, run in enumerate(runs):
        assert [f"{run.name}: started" in output for output in outputs] == [number == 0, number == 1]
        assert json.loads((run / "run.json").read_text())["earlier_starts"] == []
    assert_same(runs[0], digits)
    assert newest(runs[1]) == TOTAL_STEPS


@pytest.mark.slow
@pytest.mark.long
def test_a_run_that_is_being_run_is_left_alone_and_free_once_its_process_is_killed(tmp_path, digits, start):
    first, run = start(tmp_path), tmp_path / RUN
    wait_until(lambda: newest(run), first)
    first.send_signal(signal.SIGSTOP)
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    second = launch(tmp_path)
    assert second.returncode == 2
    one_line(second.stderr, str(tmp_path), f"is being run by {os.uname().nodename}, process {first.pid}")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
    kill(first)
    third = launch(tmp_path)
    assert third.returncode == 0, third.stderr
    assert "resumed at step" in third.stdout
    assert_same(run, digits)
