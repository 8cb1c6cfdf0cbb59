"""A process that makes the batches is killed or stopped."""

import contextlib
import os
import signal
from pathlib import Path

import pytest
from trainings import RUN, assert_same, finish, folder, newest, wait_until


def members(session):
    """The processes of a session, by id, with their command lines."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found[int(stat.parent.name)] = (stat.parent / "cmdline").read_bytes().decode()
    return found


def data_workers(process):
    return [number for number, line in members(process.pid).items() if "spawn_main" in line]


@pytest.mark.long
@pytest.mark.slow
def test_data_workers_are_replaced_when_killed_end_with_their_process_and_change_nothing(tmp_path, pictures, start):
    root, expected = pictures
    process, run = start(tmp_path, **folder(root, **{"data.workers": 2})), tmp_path / RUN
    wait_until(lambda: newest(run), process)
    workers = data_workers(process)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    wait_until(lambda: len(set(data_workers(process)) - set(workers)) == 1, process)
    before = newest(run)
    wait_until(lambda: newest(run) > before, process)
    process.kill()
    wait_until(lambda: not members(process.pid), seconds=5)
    stdout, _ = process.communicate()
    assert stdout.count("a worker process for data died; starting another one") == 1
    finish(start(tmp_path, **folder(root, **{"data.workers": 2})))
    assert_same(run, expected)  # which threads made


@pytest.mark.long
@pytest.mark.slow
def test_a_stopped_data_worker_is_a_hang_too_and_ends_with_the_process(tmp_path, pictures, start):
    settings = folder(pictures[0], **{"data.workers": 1, "train.hang_minutes": 0.15})
    process, run = start(tmp_path, **settings), tmp_path / RUN
    wait_until(lambda: newest(run), process)
    (worker,) = data_workers(process)
    os.kill(worker, signal.SIGSTOP)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "in reading the batch of step" in stdout
    wait_until(lambda: not members(process.pid), seconds=5)
