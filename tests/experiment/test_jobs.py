"""Runs at the same time: who gives them out and who takes them, with workers that train nothing."""

import errno
import io
import multiprocessing
import os
import signal

import pretended_workers
import pytest
from rich.console import Console
from test_sweep import experiment, planned

from squeezenet_jax.experiment import ahead, jobs, sweep, worker
from squeezenet_jax.experiment.shares import Machine, Share
from squeezenet_jax.experiment.worker import BEGAN, BUSY, ENDED, QUIT, READY, TOLD
from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.system import children, storage
from squeezenet_jax.system.errors import UserError


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Runs bypass=none and bypass=simple with seeds 0 and 1, two at a time: (statuses, output)."""
    monkeypatch.setattr(worker, "ask_machine", lambda: Machine("cpu", 2, 0, ()))
    monkeypatch.setattr(worker, "work", pretended_workers.pretend)
    (tmp_path / "fates").mkdir()

    def go(should_stop=lambda: False, bypasses=("none", "simple"), **fates):
        for name, fate in fates.items():
            (tmp_path / "fates" / f"bypass={name[:-1]},seed={name[-1]}").write_text(fate)
        file = io.StringIO()
        statuses = jobs.run(
            planned(experiment(bypasses=bypasses)), tmp_path / "runs", 2, Console(file=file, width=200), should_stop
        )
        return statuses, file.getvalue()

    return go


def test_workers_take_different_settings_first_and_keep_to_those_whose_programs_they_have(go, tmp_path):
    assert go(none0="lasts", none1="lasts", simple0="lasts", simple1="lasts")[0] == ["done"] * 4
    pids = [pid for pid, _ in told(tmp_path, planned())]
    assert pids[0] == pids[1] != pids[2] == pids[3]
    assert sweep.compare(planned(), tmp_path / "runs").rows  # the workdir is this plan's


def told(tmp_path, plan):
    """By run: who ran it, and what else it could have compiled."""
    messages = [RunDirectory(tmp_path / "runs" / run.name).read_status()["message"] for run in plan.runs]
    return [tuple(message.split(" ")) for message in messages]


def test_a_worker_may_compile_a_setting_that_nobody_has_begun(go, tmp_path):
    bypasses = ("none", "simple", "complex")
    assert go(bypasses=bypasses)[0] == ["done"] * 6
    *others, (_, beside_complex), _ = told(tmp_path, planned(experiment(bypasses=bypasses)))
    assert beside_complex == "bypass=simple,seed=0"  # none is the other worker's
    assert {following for _, following in others} == {""}


def test_a_setting_that_would_be_left_for_all_in_the_end_is_begun_early(go):
    statuses, output = go(bypasses=("none", "simple", "complex"))
    assert statuses == ["done"] * 6
    started = [line.split()[2] for line in output.splitlines() if line.endswith(": started")]
    assert "bypass=complex,seed=0:" in started[:2], output  # it takes longest: at the end another would wait for it
    assert started.index("bypass=simple,seed=0:") < 4, output  # who is given a run later may say first that it began


def test_a_run_whose_process_was_killed_is_named_and_the_others_are_run(go):
    statuses, output = go(none0="killed")
    assert statuses == ["failed", "done", "done", "done"]
    (line,) = [line for line in output.splitlines() if "KILLED" in line]
    assert "bypass=none,seed=0: KILLED: its process was killed by SIGKILL (if for want of memory: fewer --jobs" in line


def test_what_a_run_says_behind_its_end_ends_nothing(go):
    assert go(none0="talks", simple1="talks")[0] == ["done"] * 4


def test_who_looks_for_devices_and_has_no_parent_left_ends_quietly(monkeypatch):
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    for name in ("leave_signals_to_parent", "end_with_parent"):  # this process's signals stay as they are
        monkeypatch.setattr(children, name, lambda: None)
    worker.describe(theirs)


def test_what_ends_one_run_at_a_time_stops_all_of_them(go):
    with pytest.raises(OSError, match="No space left on device: 'bypass=none,seed=0/checkpoint'"):
        go(none0="disk", simple0="slow")


def test_a_hang_stops_all_runs_to_be_started_again(go):
    assert go(none0="hung", simple0="slow")[0] == ["preempted"] * 4


def test_a_stop_reaches_runs_that_are_under_way_and_those_behind_them_do_not_begin(go, tmp_path):
    began = lambda: (tmp_path / "runs/bypass=none,seed=0").exists()  # noqa: E731
    assert go(began, none0="slow", simple0="slow")[0] == ["preempted"] * 4
    assert not (tmp_path / "runs/bypass=none,seed=1").exists()


@pytest.mark.parametrize(
    ("life", "message"),
    [(pretended_workers.refuse, "train.batch_size: 33"), (pretended_workers.die, "was killed by SIGKILL")],
)
def test_what_cannot_start_is_one_line_and_nothing_is_written(go, tmp_path, monkeypatch, life, message):
    monkeypatch.setattr(worker, "work", life)
    with pytest.raises(UserError, match=message):
        go()
    assert not (tmp_path / "runs").exists()


def test_a_worker_leaves_a_run_that_somebody_else_is_at(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "leave_signals_to_parent", lambda: None)
    monkeypatch.setattr(sweep, "prepare", lambda plan, names: None)

    def one(plan, planned_run, directory, reporter, should_stop):
        reporter.record({"step": 7})
        directory.write_status("stalled")
        return "stalled"

    compiled = []
    monkeypatch.setattr(sweep, "run_one", one)
    monkeypatch.setattr(ahead.Ahead, "before", lambda self, *settings: compiled.append(settings))
    monkeypatch.delenv("WITH", raising=False)
    ours, theirs = multiprocessing.Pipe()
    names = [run.name for run in planned().runs]
    for order in ((names[0], names[2]), (names[1], ""), QUIT):
        ours.send(order)
    handler = signal.getsignal(signal.SIGTERM)
    with RunDirectory(tmp_path / names[1]).lock():
        worker.work(theirs, Share({"WITH": "2"}), planned(), str(tmp_path), names)
    signal.signal(signal.SIGTERM, handler)
    assert os.environ.pop("WITH") == "2"
    assert compiled == [(planned().runs[0].settings, planned().runs[2].settings)]
    answers = [ours.recv() for _ in range(5)]
    assert answers[:4] == [(READY,), (BEGAN,), (TOLD, "record", {"step": 7}), (ENDED, "stalled")]
    assert answers[4][0] == BUSY and f"process {os.getpid()}" in answers[4][1]


def test_what_a_worker_says_names_the_bucket_and_not_its_copy():
    pytest.importorskip("boto3")
    copy = storage.expand("s3://squeeze-bucket/runs")
    ours, theirs = multiprocessing.Pipe()
    worker._Parent(theirs).notice(f"FAILED: see {copy}/error.txt")
    assert ours.recv() == (TOLD, "notice", "FAILED: see s3://squeeze-bucket/runs/error.txt")
    assert str(worker.portable(UserError(f"{copy}: is wrong"))) == "s3://squeeze-bucket/runs: is wrong"
    full = worker.portable(OSError(errno.ENOSPC, "No space left on device", f"{copy}/a"))
    assert full.filename == "s3://squeeze-bucket/runs/a"


def test_a_worker_is_told_the_place_in_the_bucket_and_not_the_copy_of_this_process(monkeypatch):
    pytest.importorskip("boto3")

    def start(target, share, plan, place, unfinished, own_cores):
        raise KeyError(place)

    monkeypatch.setattr(children, "start", start)
    with pytest.raises(KeyError, match="'s3://squeeze-bucket/runs'"):
        jobs._Worker(Share({}), planned(), storage.expand("s3://squeeze-bucket/runs"), [])
