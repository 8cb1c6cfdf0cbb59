"""The data set that `prepare` writes: read by plain TFDS, from good input and bad."""

import collections
import json
import subprocess
import sys

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
from squeezenet_jax.system.errors import UserError


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


@pytest.mark.parametrize("pack", [write_folder, write_tar])
def test_a_finished_data_set_is_not_taken_for_that_of_another_source(tmp_path, pack):
    files = small_collection()
    (tmp_path / "other").mkdir()
    prepare(pack(tmp_path / "s.tar", files), tmp_path / "out", Listener())
    other = pack(tmp_path / "other" / "s.tar", {path.replace("ant", "ape"): content for path, content in files.items()})
    with pytest.raises(UserError, match=r"is another one than .* was prepared from, or has changed since"):
        prepare(other, tmp_path / "out", Listener())
    assert prepare(tmp_path / "s.tar", tmp_path / "out", Listener()).was_there


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
    assert prepared.ignored_names == ("train/cat/nowhere.jpg: a link to nothing",)
    assert (prepared.directory / "ignored.txt").read_text().splitlines() == list(prepared.ignored_names)
    assert prepared.sizes == {"train": 30, "validation": 10}
    lines = (prepared.directory / "unreadable.txt").read_text().splitlines()
    assert lines == list(prepared.unreadable) == sorted(lines)
    assert [line.rpartition(": ")[0] for line in lines] == [
        "train/cat/\\x1b[31m.jpg",
        "train/cat/a text.jpg",
        "train/cat/empty.jpg",
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
@pytest.mark.long
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
