"""A file that is read never answers."""

import os
import shutil

import pytest
from trainings import RUN, assert_same, finish, folder, newest, status, wait_until


@pytest.mark.slow
def test_a_hang_ends_the_process_which_says_where_and_is_resumed(tmp_path, pictures, start):
    root, expected = pictures
    data = tmp_path / "data"
    shutil.copytree(root, data)
    image, run = next(data.glob("train/*/*.jpg")), tmp_path / "runs" / RUN
    settings = folder(data, **{"train.hang_minutes": 0.15})
    process = start(tmp_path / "runs", **settings)
    wait_until(lambda: newest(run), process)
    image.rename(tmp_path / "aside")
    os.mkfifo(image)  # to read it is to wait for somebody who writes
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    (hung,) = [line for line in stdout.splitlines() if "HUNG" in line]
    assert "in reading the batch of step" in hung
    assert str(run / "hang.txt") in hung
    assert status(run) == "hung"
    assert "folder.py" in (run / "hang.txt").read_text()
    image.unlink()
    (tmp_path / "aside").rename(image)
    stdout, _ = finish(start(tmp_path / "runs", **settings))
    assert "resumed at step" in stdout
    assert_same(run, expected)
