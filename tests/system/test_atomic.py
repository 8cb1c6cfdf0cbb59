"""Files that appear complete or not at all, whatever happens in between."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from squeezenet_jax.system import atomic
from squeezenet_jax.system.errors import UserError


@pytest.fixture(params=["nameless", "named"])
def scratch_files(request, monkeypatch):
    """Both ways to keep unfinished content: not every file system has files without names."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    elif not hasattr(os, "O_TMPFILE"):
        pytest.skip("needs Linux")


def fail(number):
    def fails(*arguments):
        raise OSError(number, os.strerror(number))

    return fails


@pytest.mark.usefixtures("scratch_files")
def test_new_files_have_the_umasks_permissions_and_old_ones_keep_theirs(tmp_path):
    path = tmp_path / "file"
    mask = os.umask(0o027)
    try:
        atomic.write(path, b"1")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        atomic.write(path, b"2")
    finally:
        os.umask(mask)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"2", 0o604)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("scratch_files")
@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_replaced(tmp_path, there):
    (tmp_path / "elsewhere").mkdir()
    target, middle, link = tmp_path / "elsewhere" / "target", tmp_path / "middle", tmp_path / "link"
    if there:
        target.write_bytes(b"old")
    middle.symlink_to("elsewhere/target")
    link.symlink_to(middle)
    atomic.write(link, b"new")
    assert link.is_symlink() and middle.is_symlink() and not target.is_symlink()
    assert target.read_bytes() == b"new"
    assert {path.name for path in tmp_path.rglob("*")} == {"elsewhere", "target", "middle", "link"}


@pytest.mark.usefixtures("scratch_files")
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_leaves_what_was_there_and_names_the_file(tmp_path, monkeypatch, call, there):
    path = tmp_path / "file"
    if there:
        path.write_bytes(b"old")
    monkeypatch.setattr(os, call, fail(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left") as caught:
        atomic.write(path, b"new")
    assert caught.value.filename == str(path) and caught.value.filename2 is None
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"] * there


@pytest.mark.usefixtures("scratch_files")
def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic.write(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_nothing(tmp_path):
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY))
    except (AttributeError, OSError):
        pytest.skip("this file system has no files without names")
    code = """
import os, pathlib, signal, sys
from squeezenet_jax.system import atomic
from squeezenet_jax.system.errors import UserError
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
atomic.write(pathlib.Path(sys.argv[1]), b"new")
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "file"]).returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("scratch_files")
@pytest.mark.parametrize("length", [240, 255])
def test_the_longest_names_can_be_written(tmp_path, length):
    for name in ("n" * length, "é" * (length // 2)):
        atomic.write(tmp_path / name, b"new")
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("name", "number"),
    [("n" * 256, errno.ENAMETOOLONG), ("missing/file", errno.ENOENT), (".", errno.EISDIR), ("file/x", errno.ENOTDIR)],
)
def test_what_cannot_be_written_is_named(tmp_path, name, number):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r".") as caught:
        atomic.write(tmp_path / name, b"new")
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_devices_and_pipes_are_written_to_and_stay(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    atomic.write(pipe, b"content")
    reader.join(10)
    assert got == [b"content"] and stat.S_ISFIFO(pipe.stat().st_mode)
    (tmp_path / "null").symlink_to("/dev/null")
    atomic.write(tmp_path / "null", b"content")
    assert (tmp_path / "null").is_char_device()


def test_only_scratch_files_are_left_over(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    for name in ("file", "n" * 250):
        made = atomic._scratch(tmp_path / name)
        made.touch()
    for name in (".hidden", ".hidden.txt", "file.1"):
        (tmp_path / name).touch()
    atomic.remove_left_over(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", ".hidden.txt", "file.1"]


def test_where_a_file_cannot_be_put_is_known_before_the_work_that_it_is_for(tmp_path, monkeypatch):
    atomic.check_place(tmp_path / "a", "OUT")
    (tmp_path / "folder").mkdir()
    for name, reason in (("folder", "is a folder"), ("none/a", f"there is no folder {tmp_path}/none")):
        with pytest.raises(UserError, match=f"OUT {tmp_path}/{name}: {reason}"):
            atomic.check_place(tmp_path / name, "OUT")
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))  # root may write anywhere
    with pytest.raises(UserError, match=f"OUT {tmp_path}/a: {tmp_path} cannot be written to"):
        atomic.check_place(tmp_path / "a", "OUT")
