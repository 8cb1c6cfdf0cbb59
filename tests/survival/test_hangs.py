"""A file that is read never answers."""

import contextlib
import fcntl
import os
import shutil
import signal

import pytest
from trainings import RUN, assert_same, finish, folder, newest, status, wait_until


@contextlib.contextmanager
def nobody_can_open(path):
    """For 45 s, or the system's own lease-break-time, whoever opens the file waits for us to give it back."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # which would ask us to
    descriptor = os.open(path, os.O_RDWR)

    def leased():
        with contextlib.suppress(BlockingIOError):  # somebody is reading it
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            return True
        return False

    try:
        wait_until(leased)
        yield
    finally:
        os.close(descriptor)
        signal.signal(signal.SIGIO, before)


@pytest.mark.long
@pytest.mark.slow
def test_a_hang_ends_the_process_which_says_where_and_is_resumed(tmp_path, pictures, start):
    root, expected = pictures
    data = tmp_path / "data"
    shutil.copytree(root, data)
    image, run = next(data.glob("train/*/*.jpg")), tmp_path / "runs" / RUN
    settings = folder(data, **{"train.hang_minutes": 0.15})
    process = start(tmp_path / "runs", **settings)
    wait_until(lambda: newest(run), process)
    with nobody_can_open(image):
        stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    (hung,) = [line for line in stdout.splitlines() if "HUNG" in line]
    assert "in reading the batch of step" in hung
    assert str(run / "hang.txt") in hung
    assert status(run) == "hung"
    assert "decoding.py" in (run / "hang.txt").read_text()
    stdout, _ = finish(start(tmp_path / "runs", **settings))
    assert "resumed at step" in stdout
    assert_same(run, expected)
