"""`prepare` that was killed, refused room or run twice: the same command ends with the same bytes, or says why not."""

import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prepare_files import (
    REPOSITORY,
    SHARD_BYTES,
    Listener,
    digests,
    jpeg,
    small_collection,
    write_folder,
    write_tar,
)

from squeezenet_jax.data.prepare.writer import prepare
from squeezenet_jax.system.errors import UserError

SCRIPT = """
import sys; sys.path.insert(0, "tests/data")
from pathlib import Path
from prepare_files import Listener
from squeezenet_jax.data.prepare.writer import prepare
prepare(Path(sys.argv[1]), Path(sys.argv[2]), Listener(), short_side=12, shard_bytes=int(sys.argv[3]))
"""


def start(source, out, *options, **keywords):
    command = [sys.executable, "-c", SCRIPT, str(source), str(out), str(SHARD_BYTES), *options]
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, **keywords)


def finished_shards(out):
    return len(list(out.glob("many/incomplete.1.0.0/data/*.array_record-?????-of-?????")))


def killed_after(shards, source, out):
    """Exit status and stderr of a process that is killed once so many are finished; it may have ended before."""
    process = start(source, out)
    while process.poll() is None and finished_shards(out) < shards:
        time.sleep(0.001)
    process.kill()
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.long
def test_killed_again_and_again_it_ends_with_the_same_bytes(many, tmp_path):
    source, whole = many
    kills = 0
    while True:
        before = finished_shards(tmp_path)
        status, errors = killed_after(before + 10, source, tmp_path)
        assert (tmp_path / "many" / "1.0.0").exists() == (status == 0), errors
        if status == 0:
            break
        assert status == -signal.SIGKILL, errors
        kills += 1
        assert finished_shards(tmp_path) >= before + 10  # what was finished stays
    assert kills >= 2
    assert digests(tmp_path / "many" / "1.0.0") == digests(whole.directory)
    assert [path.name for path in (tmp_path / "many").iterdir()] == ["1.0.0"]


def test_what_was_written_before_is_not_written_again(many, tmp_path):
    source, whole = many
    status, errors = killed_after(10, source, tmp_path)
    assert status == -signal.SIGKILL, errors
    work = tmp_path / "many" / "incomplete.1.0.0"
    finished = {path.name: path.stat().st_ino for path in (work / "data").iterdir() if not path.name.endswith(".part")}
    torn = sorted(finished)[0]
    (work / "data" / torn).write_bytes(b"torn")  # as by a power cut
    listener = Listener()
    prepare(source, tmp_path, listener, short_side=12, shard_bytes=SHARD_BYTES)
    assert any("of 1,201 images done" in text for text in listener.said)
    assert 0 < listener.done == listener.total < 1201
    final = tmp_path / "many" / "1.0.0"
    assert all((final / name).stat().st_ino == node for name, node in finished.items() if name != torn)
    assert digests(final) == digests(whole.directory)


def test_killed_just_after_the_last_step_it_cleans_up(tmp_path):
    source = write_folder(tmp_path / "s", small_collection())
    prepare(source, tmp_path / "out", Listener())
    left_over = tmp_path / "out" / "s" / "incomplete.1.0.0"
    (left_over / "shards").mkdir(parents=True)
    assert prepare(source, tmp_path / "out", Listener()).was_there and not left_over.exists()


def test_other_options_than_before_are_refused(many, tmp_path):
    source, whole = many
    with pytest.raises(
        UserError, match=r"--short-side: no value is not what was prepared in .*, which had 12; give ano"
    ):
        prepare(source, whole.directory.parents[1], Listener(), shard_bytes=SHARD_BYTES)
    status, errors = killed_after(2, source, tmp_path)
    assert status == -signal.SIGKILL, errors
    before = digests(tmp_path)
    with pytest.raises(UserError, match=r"--short-side: 13 is not what was begun in .*, which had 12; .*delete"):
        prepare(source, tmp_path, Listener(), short_side=13, shard_bytes=SHARD_BYTES)
    other = shutil.copy(source, tmp_path / "other.tar.gz")
    with pytest.raises(UserError, match=r"SOURCE: other.tar.gz is not what was begun in .*, which had many.tar.gz"):
        prepare(Path(other), tmp_path, Listener(), name="many", short_side=12, shard_bytes=SHARD_BYTES)
    Path(other).unlink()
    assert digests(tmp_path) == before


def test_a_source_that_changed_meanwhile_is_refused(tmp_path):
    source = write_folder(tmp_path / "s", {f"train/a/{i}.jpg": jpeg(i) for i in range(30)})
    out = tmp_path / "out"
    work = out / "s" / "incomplete.1.0.0"

    class Interrupting(Listener):
        def advance(self, count):
            super().advance(count)
            if self.done == 20:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, out, Interrupting(), shard_bytes=2000)
    (source / "train" / "a" / "new.jpg").write_bytes(jpeg(99))
    with pytest.raises(UserError, match=r"has changed since .* was begun; delete") as caught:
        prepare(source, out, Listener(), shard_bytes=2000)
    assert str(work) in str(caught.value) and work.exists()
    (source / "train" / "a" / "new.jpg").unlink()
    assert prepare(source, out, Listener(), shard_bytes=2000).sizes == {"train": 30}


def test_an_archive_that_was_replaced_meanwhile_is_refused(many, tmp_path):
    """It has been unpacked by then, so its listing alone would not tell."""
    source = Path(shutil.copy(many[0], tmp_path))
    out = tmp_path / "out"

    class Interrupting(Listener):
        def advance(self, count):
            if self.total == 1201:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, out, Interrupting(), short_side=12)
    write_tar(source, small_collection(), "gz")
    with pytest.raises(UserError, match=r"bytes of SOURCE: \d+ is not what was begun in .*delete that folder"):
        prepare(source, out, Listener(), short_side=12)


def test_two_processes_do_not_write_at_once(tmp_path):
    source = write_folder(tmp_path / "s", small_collection())

    class Second(Listener):
        error = None

        def begin(self, what, total, unit):
            with pytest.raises(UserError, match="another process is writing there"):
                prepare(source, tmp_path / "out", Listener())

    assert prepare(source, tmp_path / "out", Second()).sizes == {"train": 30, "validation": 10}


@pytest.mark.parametrize("limit", [100, 30_000])
def test_a_full_disk_is_one_line_and_can_be_continued(many, tmp_path, limit):
    """No file may grow beyond `limit` bytes: the first that does is begun.json, or the unpacked archive."""
    source, whole = many

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start(source, tmp_path, preexec_fn=small_disk)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    message = errors.splitlines()[-1]
    assert "UserError" in message and "cannot be written" in message and "same command continues" in message
    prepare(source, tmp_path, Listener(), short_side=12, shard_bytes=SHARD_BYTES)
    assert digests(tmp_path / "many" / "1.0.0") == digests(whole.directory)


def test_a_disk_that_is_full_in_a_shard_is_one_line(tmp_path):
    source = write_folder(tmp_path / "many", {f"train/a/{i}.jpg": jpeg(i, (300, 300)) for i in range(100)})

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000))

    process = start(source, tmp_path, preexec_fn=small_disk)
    _, errors = process.communicate(timeout=60)
    message = errors.splitlines()[-1]
    assert "UserError" in message and ".part: cannot be written (" in message and "File too large" in message
