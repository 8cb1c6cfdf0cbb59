"""A run's directory: what is in it after kills, new starts and disks that are full."""

import json
import math
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.system.errors import UserError

KILLED_IN_MID_WRITE = """
import os, pathlib, signal, sys
from squeezenet_jax.runs.directory import RunDirectory
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
RunDirectory(pathlib.Path(sys.argv[1])).write_status("done")
"""


@pytest.fixture
def directory(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.begin({})
    directory.write_status("running")
    return directory


def test_a_status_that_was_half_written_is_removed_by_the_next_start(directory):
    before = sorted(directory.path.iterdir())
    command = [sys.executable, "-c", KILLED_IN_MID_WRITE, directory.path]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert directory.status == "running" and len(list(directory.path.glob(".status.json.*"))) == 1
    directory.begin({})
    assert sorted(directory.path.iterdir()) == before


def test_the_next_start_leaves_other_hidden_files_alone(directory):
    (directory.path / ".nfs00000017").touch()
    directory.begin({})
    assert (directory.path / ".nfs00000017").exists()


def test_before_anything_is_written_the_status_is_missing_and_there_are_no_metrics(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    assert directory.status == "missing"
    assert directory.read_metrics() == []


def test_a_run_is_described_by_its_settings_and_its_machine_at_every_start(tmp_path):
    directory = RunDirectory(tmp_path)
    for command in ("first", "second", "third"):
        directory.begin({"command": command})
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["command"] == "third"
    assert [start["command"] for start in content["earlier_starts"]] == ["first", "second"]
    assert not any("earlier_starts" in start for start in content["earlier_starts"])
    for start in (content, *content["earlier_starts"]):
        assert start["versions"]["python"] == platform.python_version()


@pytest.mark.parametrize("content", [b"[]", b'{"sta', b"\xff"])
def test_a_status_that_is_not_this_programs_is_an_error_and_not_a_run_to_start_anew(directory, content):
    (directory.path / "status.json").write_bytes(content)
    with pytest.raises(UserError, match="status"):
        directory.read_status()


def metrics(*steps):
    return [{"split": "train", "step": step, "loss": 1 / step} for step in steps]


def test_metrics_are_read_back_in_order_and_without_a_line_that_a_kill_tore(directory):
    for record in metrics(1, 2, 3):
        directory.append_metrics(record)
    with (directory.path / "metrics.jsonl").open("a") as file:
        file.write('{"split": "tra')
    assert directory.read_metrics() == metrics(1, 2, 3)


def test_a_resumed_run_keeps_the_lines_up_to_its_checkpoint_and_no_others(directory):
    for record in metrics(1, 2, 3, 4):
        directory.append_metrics(record)
    with (directory.path / "metrics.jsonl").open("a") as file:
        file.write('{"split": "tra')
    directory.truncate_metrics(after=2)
    directory.append_metrics(metrics(3)[0])  # behind a torn line it would be lost
    assert directory.read_metrics() == metrics(1, 2, 3)


def test_metrics_are_strict_json(directory):
    with pytest.raises(ValueError, match="not JSON compliant"):
        directory.append_metrics({"loss": math.nan})
    assert directory.read_metrics() == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_on_a_full_disk_the_error_names_the_file(directory):
    path = directory.path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        directory.append_metrics(metrics(1)[0])
    assert caught.value.filename == str(path)


def test_an_image_that_cannot_be_read_is_named_once_over_all_starts(directory):
    for name in ("a.jpg: truncated", "b.jpg: empty", "a.jpg: truncated"):
        RunDirectory(directory.path).add_unreadable(name)
    assert (directory.path / "unreadable.txt").read_text() == "a.jpg: truncated\nb.jpg: empty\n"


def test_one_process_at_a_time_holds_a_run_and_the_others_learn_which(directory):
    me = f"{platform.node()}, process {os.getpid()}"
    (directory.path / "lock").write_text("a machine with a much longer name than this one has, process 4711\n" * 2)
    with directory.lock() as holder:
        assert holder is None
        with RunDirectory(directory.path).lock() as holder:
            assert holder == me
    with directory.lock() as holder:
        assert holder is None
