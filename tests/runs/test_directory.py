import signal
import subprocess
import sys

import pytest

from squeezenet_jax.runs.directory import RunDirectory

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
