"""Training, `evaluate` and `prepare` list the same files of a folder, and name what they leave out."""

import dataclasses
import os

import numpy as np
import pytest
from picture_folders import clear, photograph, settings_for
from prepare_files import Listener, read

from squeezenet_jax.data import catalog, folder, layouts, sources
from squeezenet_jax.data.prepare.writer import prepare
from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.training import train


@pytest.fixture
def messy(pictures, tmp_path):
    """30 plain photographs in train, 6 more in odd places, and 8 things that are none."""
    cat = pictures / "train/cat"
    elsewhere = tmp_path / "elsewhere"
    (cat / "deep/deeper").mkdir(parents=True)
    (elsewhere / "more").mkdir(parents=True)
    for path in (cat / "deep/1.jpg", cat / "deep/deeper/2.jpg", elsewhere / "3.jpg", elsewhere / "more/4.jpg"):
        path.write_bytes(photograph(5))
    (cat / "file_link.jpg").symlink_to(elsewhere / "3.jpg")
    (cat / "folder_link").symlink_to(elsewhere)  # two images
    (pictures / "train/dog").symlink_to(elsewhere / "more")  # one
    (cat / "up").symlink_to(pictures / "train")
    (cat / "itself").symlink_to("itself")
    (cat / "nowhere.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(cat / "pipe.jpg")
    (cat / ".hidden.jpg").write_bytes(photograph(6))
    (pictures / "train/.cache").mkdir()
    (pictures / "train/stray.jpg").write_bytes(photograph(7))
    (pictures / "raw").mkdir()
    clear()
    return pictures


ODD = {
    "cat/deep/1.jpg",
    "cat/deep/deeper/2.jpg",
    "cat/file_link.jpg",
    "cat/folder_link/3.jpg",
    "cat/folder_link/more/4.jpg",
    "dog/4.jpg",
}
LEFT_OUT = {
    ".cache: hidden",
    "cat/.hidden.jpg: hidden",
    "cat/itself: a link to nothing",
    "cat/nowhere.jpg: a link to nothing",
    "cat/pipe.jpg: no file, but a pipe or a device",
    "cat/up: a link to a folder that holds it",
    "stray.jpg: in no class folder",
}
IN_TRAIN = {f"train/{line}" for line in LEFT_OUT} | {"raw: a folder that is no split"}


def test_the_three_list_the_same_files_and_leave_out_the_same(messy, tmp_path):
    plain = {f"{name}/{number}.jpg" for name in ("ant", "bee", "cat") for number in range(10)}
    evaluated = layouts.class_folders(messy / "train")
    assert {item.file_name for item in evaluated.items} == plain | ODD
    assert set(evaluated.ignored) == LEFT_OUT and evaluated.class_names == ("ant", "bee", "cat", "dog")

    trained = folder.scan(str(messy))
    labels = {item.file_name: item.label for item in trained.splits["train"]}
    assert labels == {item.file_name: item.label for item in evaluated.items}
    assert set(trained.ignored) == set(sources.left_out(settings_for(messy).data)) == IN_TRAIN

    prepared = prepare(messy, tmp_path / "out", Listener())
    assert set(read(prepared.directory, "train")) == plain | ODD
    assert set(prepared.ignored_names) == IN_TRAIN and prepared.ignored == len(IN_TRAIN)
    assert prepare(messy, tmp_path / "out", Listener()) == dataclasses.replace(prepared, was_there=True)


@pytest.mark.long
def test_a_training_names_and_counts_what_it_leaves_out(messy, tmp_path):
    notices = []

    class Noting:
        def start(self, step, total_steps): ...

        def record(self, record): ...

        def notice(self, text):
            notices.append(text)

    (messy / "val/dog").mkdir()
    settings = settings_for(messy, train__epochs=1.0, train__batch_size=16, train__eval_batch_size=8)
    directory = RunDirectory(tmp_path / "run")
    directory.begin({"settings": dataclasses.asdict(settings)})
    assert train.train(settings, directory, Noting(), lambda: True) == "preempted"
    assert sorted((directory.path / "unreadable.txt").read_text().splitlines()) == sorted(IN_TRAIN)
    assert any(f"left out, no images by their place: {len(IN_TRAIN)}" in text for text in notices)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "eval"])
def test_the_usual_names_of_a_validation_split_are_used(pictures, tmp_path, name):
    (pictures / "val").rename(pictures / name)
    clear()
    data = settings_for(pictures).data
    assert data.eval_split == "validation" and len(sources.load(data, "eval_split")) == 9
    for text in (name, f"{name}[:50%]"):
        catalog.check(settings_for(pictures, data__eval_split=text).data)
    assert prepare(pictures, tmp_path / "out", Listener()).sizes == {"train": 30, "validation": 9}
    (pictures / "test/ant").mkdir(parents=True)
    (pictures / ("eval" if name != "eval" else "val") / "ant").mkdir(parents=True)
    clear()
    with pytest.raises(UserError, match=r"has both \w+ and \w+; they are one split"):
        folder.scan(str(pictures))


def test_no_split_that_is_trained_on_is_proposed_to_evaluate_on(pictures):
    (pictures / "val").rename(pictures / "held_out")
    clear()
    message = 'data.eval_split: unknown value "{}"; allowed: train; folder has no images that are held out'
    for split in ("test", "val", "validate"):
        with pytest.raises(UserError, match=message.format(split)):
            catalog.check(settings_for(pictures, data__eval_split=split).data)


def test_names_that_are_not_utf8_and_joiners(pictures, tmp_path):
    odd = pictures / "train" / os.fsdecode(b"caf\xe9")
    joined = pictures / "train" / "क्\u200dष"
    for directory in (odd, joined):
        directory.mkdir()
        (directory / os.fsdecode(b"\xff.jpg")).write_bytes(photograph(1))
        (directory / os.fsdecode(b"\xfe.jpg")).write_text("no image")
    clear()
    found = folder.scan(str(pictures))
    assert {"caf\\xe9", "क्\u200dष"} < set(found.class_names)
    source = sources.load(settings_for(pictures).data, "train_split")
    batch = source.read(np.arange(len(source)), None)
    assert len(batch["unreadable"]) == 2 and all("\\xfe.jpg: no image" in name for name in batch["unreadable"])
    prepared = prepare(pictures, tmp_path / "out", Listener())
    assert {"caf\\xe9/\\xff.jpg", "क्\u200dष/\\xff.jpg"} <= set(read(prepared.directory, "train"))
