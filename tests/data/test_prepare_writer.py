"""The data set that `prepare` writes: read by plain TFDS, the same bytes however often it was interrupted."""

import collections
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from prepare_files import (
    CIFAR10,
    PHOTOGRAPHS,
    REPOSITORY,
    Listener,
    digests,
    encoded,
    jpeg,
    needs_cifar10,
    needs_photographs,
    picture,
    read,
    shape,
    small_collection,
    write_folder,
    write_tar,
)

from squeezenet_jax.data.prepare.writer import prepare
from squeezenet_jax.errors import UserError

SCRIPT = """
import sys; sys.path.insert(0, "tests/data")
from pathlib import Path
from prepare_files import Listener
from squeezenet_jax.data.prepare.writer import prepare
prepare(Path(sys.argv[1]), Path(sys.argv[2]), Listener(), short_side=12, shard_bytes=int(sys.argv[3]))
"""
SHARD_BYTES = 20_000


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """1,200 images as a compressed archive, and what comes of it without an interruption."""
    root = tmp_path_factory.mktemp("many")
    files = {f"train/{'abc'[i % 3]}/{i}.jpg": jpeg(i) for i in range(1000)}
    files |= {f"val/{'abc'[i % 3]}/{i}.png": encoded(picture(i), "PNG") for i in range(200)}
    files["train/a/broken.jpg"] = jpeg(0)[:300]
    source = write_tar(root / "many.tar.gz", files, "gz")
    whole = prepare(source, root / "whole", Listener(), short_side=12, shard_bytes=SHARD_BYTES)
    return source, whole


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


def test_shards_are_read_as_one_by_plain_tfds(many):
    _, whole = many
    builder = tfds.builder_from_directory(whole.directory)
    assert builder.info.splits["train"].num_shards > 20
    sources = builder.as_data_source()
    assert (
        {split: len(source) for split, source in sources.items()} == whole.sizes == {"train": 1000, "validation": 200}
    )
    names = {name for split in whole.sizes for name in read(whole.directory, split)}
    assert len(names) == 1200 and "a/broken.jpg" not in names
    assert shape(whole.directory) == (12, 15, 3)
    by_name = tfds.data_source("many", data_dir=whole.directory.parents[1], split="validation", download=False)
    np.testing.assert_array_equal(by_name[3]["image"], sources["validation"][3]["image"])


def test_any_range_is_a_random_part_of_each_class(many):
    _, whole = many
    examples = tfds.builder_from_directory(whole.directory).as_data_source("train[:50%]")
    counts = collections.Counter(int(example["label"]) for example in examples)
    assert all(130 < counts[label] < 204 for label in range(3))  # 167 of 333 +- 4 standard deviations of 9


def test_two_directories_from_the_same_source_are_the_same(tmp_path):
    source = write_folder(tmp_path / "s", small_collection())
    first, second = (prepare(source, tmp_path / out, Listener()) for out in "ab")
    assert digests(first.directory) == digests(second.directory)


def test_a_finished_data_set_is_left_alone(tmp_path):
    source = write_folder(tmp_path / "s", {**small_collection(), "train/ant/x.jpg": b"text"})
    first = prepare(source, tmp_path / "out", Listener())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    again = prepare(source, tmp_path / "out", Listener())
    assert again.was_there and not first.was_there
    assert (again.sizes, again.unreadable, again.num_classes) == (first.sizes, first.unreadable, first.num_classes)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


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


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([picture(0), picture(1)], (16, 20, 3)),
        ([picture(0, mode="L"), picture(1, mode="L")], (16, 20, 1)),
        ([picture(0), picture(1, mode="L")], (16, 20, 3)),
        ([picture(0), picture(1, (20, 17))], (None, None, 3)),
        ([picture(0, mode="L"), picture(1, (20, 17), mode="L")], (None, None, 3)),
    ],
    ids=["one size", "grey", "grey and colour", "two sizes", "grey of two sizes"],
)
@pytest.mark.parametrize("shard_bytes", [1, 1 << 20])
def test_the_shape_is_what_all_images_have(tmp_path, images, expected, shard_bytes):
    files = {f"train/a/{i}.png": encoded(image, "PNG") for i, image in enumerate(images)}
    prepared = prepare(write_folder(tmp_path / "s", files), tmp_path / "out", Listener(), shard_bytes=shard_bytes)
    assert shape(prepared.directory) == expected
    for name, (_, _, pixels) in read(prepared.directory, "train").items():
        image = np.asarray(images[int(name[2])])
        image = image if image.ndim == 3 else np.repeat(image[..., None], expected[2], -1)
        np.testing.assert_array_equal(pixels, image)


def test_unreadable_files_are_left_out_and_named(tmp_path):
    broken = {
        "train/cat/a text.jpg": b"hello",
        "train/cat/empty.jpg": b"",
        "val/ant/cut.jpg": jpeg(1, (200, 200))[:-500],
        "train/cat/\x1b[31m.jpg": b"x",
    }
    source = write_folder(tmp_path / "s", {**small_collection(), **broken})
    (source / "train" / "cat" / "nowhere.jpg").symlink_to(tmp_path / "nothing")
    prepared = prepare(source, tmp_path / "out", Listener(), shard_bytes=1)  # some shards are left empty
    assert prepared.sizes == {"train": 30, "validation": 10}
    lines = (prepared.directory / "unreadable.txt").read_text().splitlines()
    assert lines == list(prepared.unreadable) == sorted(lines)
    assert [line.rpartition(": ")[0] for line in lines] == [
        "train/cat/\\x1b[31m.jpg",
        "train/cat/a text.jpg",
        "train/cat/empty.jpg",
        "train/cat/nowhere.jpg",
        "validation/ant/cut.jpg",
    ]
    assert len(read(prepared.directory, "train")) == 30
    assert json.loads((prepared.directory / "prepare.json").read_text())["SOURCE"] == "s"


@pytest.mark.parametrize("name", ["Flowers", "1st", "a-b", "", "../x", "a b"])
def test_wrong_names_are_refused(tmp_path, name):
    source = write_folder(tmp_path / "s", small_collection())
    with pytest.raises(UserError, match=r"--name: .* allowed: lower-case letters"):
        prepare(source, tmp_path / "out", Listener(), name=name)
    with pytest.raises(UserError, match=r"--name: .* allowed: lower-case letters"):  # the default asks for another
        prepare(source.rename(tmp_path / "17"), tmp_path / "out", Listener())
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_is_one_line(tmp_path):
    source = write_folder(tmp_path / "s", small_collection())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*: cannot be written \(") as caught:
        prepare(source, tmp_path / "file", Listener())
    assert "\n" not in str(caught.value)
    (tmp_path / "out" / "s" / "1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match="is there and was not written by this command"):
        prepare(source, tmp_path / "out", Listener())


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


def test_needs_neither_tensorflow_nor_jax():
    script = "import sys; import squeezenet_jax.data.prepare.writer; print({'jax', 'tensorflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "set()\n", "")


@needs_photographs
def test_real_photographs_with_a_short_side(tmp_path):
    prepared = prepare(PHOTOGRAPHS, tmp_path, Listener(), short_side=256)
    assert prepared.sizes == {"validation": 100} and prepared.num_classes == 1000 and prepared.unreadable == ()
    stored = read(prepared.directory, "validation")
    assert all(name.split("/")[0] == label for name, (label, _, _) in stored.items())
    short_sides = [min(pixels.shape[:2]) for _, _, pixels in stored.values()]
    assert max(short_sides) == 256 and all(pixels.shape[2] == 3 for _, _, pixels in stored.values())


@pytest.mark.slow
@needs_cifar10
def test_real_cifar10_keeps_every_byte(tmp_path):
    import tarfile

    prepared = prepare(CIFAR10, tmp_path, Listener())
    assert prepared.sizes == {"train": 50_000, "test": 10_000} and shape(prepared.directory) == (32, 32, 3)
    with tarfile.open(CIFAR10) as archive:
        original = {member.name: archive.extractfile(member).read() for member in archive if member.isreg()}
    raw = tfds.builder_from_directory(prepared.directory).as_data_source(decoders={"image": tfds.decode.SkipDecoding()})
    names = tfds.builder_from_directory(prepared.directory).info.features["label"].names
    for split, source in raw.items():
        for begin in range(0, len(source), 5000):
            for example in source.__getitems__(range(begin, begin + 5000)):
                name = example["file_name"].decode()
                assert example["image"] == original.pop(f"{split}/{name}")
                assert names[example["label"]] == name.split("/")[0]
    assert not original
