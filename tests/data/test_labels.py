"""What a split's labels say about guessing, through every kind of source."""

import math

import numpy as np
import pytest
from picture_folders import CROPS, clear, settings_for, spoil
from test_sources import Silent

from squeezenet_jax.data import labels, sources, tfds_source
from squeezenet_jax.data.prepare.writer import prepare


def in_memory(*counts, unreadable=()):
    label = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return sources.InMemory(np.zeros((len(label), 2, 2, 1), np.uint8), label, unreadable)


@pytest.mark.parametrize(
    ("counts", "entropy", "majority", "commonest"),
    [
        ((7, 7, 7), math.log(3), 1 / 3, 0),
        ((5, 95), -0.05 * math.log(0.05) - 0.95 * math.log(0.95), 0.95, 1),
        ((0, 4), 0.0, 1.0, 1),
    ],
)
def test_guessing_by_frequencies_has_the_loss_of_the_entropy(counts, entropy, majority, commonest):
    found = labels.distribution(in_memory(*counts))
    assert labels.entropy(in_memory(*counts)) == found.entropy
    smoothed = (1 - 0.1) * np.array(counts) / sum(counts) + 0.1 / len(counts)
    of_smoothed = labels.entropy(in_memory(*counts), smoothing=0.1, num_classes=len(counts))
    assert of_smoothed == pytest.approx(-np.sum(smoothed * np.log(smoothed)))
    assert (found.images, found.commonest) == (sum(counts), commonest)
    assert (found.entropy, found.majority) == pytest.approx((entropy, majority))


def test_images_known_to_be_unreadable_do_not_count():
    assert labels.distribution(in_memory(3, 2, unreadable=((0, "a"), (1, "b")))) == labels.distribution(in_memory(1, 2))


def test_every_source_of_the_same_images_has_the_same_distribution(pictures, tmp_path, monkeypatch):
    (pictures / "train/ant/0.jpg").unlink()
    clear()
    whole, crops = settings_for(pictures).data, settings_for(pictures, **CROPS).data
    prepare(pictures, tmp_path / "sets", Silent(), name="insects")
    prepared = settings_for(tmp_path / "sets", "insects", **CROPS).data
    expected = labels.distributions(whole)
    assert (expected["train"]["images"], expected["train"]["commonest"]) == (29, 1)
    assert expected["eval"]["majority"] == pytest.approx(1 / 3)
    assert labels.distributions(crops) == labels.distributions(prepared) == expected
    clear()
    monkeypatch.setattr(tfds_source, "LABELS_AT_A_TIME", 4)
    assert labels.distributions(prepared) == expected


@pytest.mark.parametrize("train_split", ["train", "train[3:-4]"])
def test_of_a_data_set_that_prepare_wrote_they_are_known_without_its_records(
    pictures, tmp_path, monkeypatch, train_split
):
    """Unreadable files, which are in no record, among several shards."""
    spoil(pictures)
    directory = prepare(pictures, tmp_path / "sets", Silent(), name="insects", shard_bytes=4000).directory
    assert len(list(directory.glob("*-train.*"))) > 1
    data = settings_for(tmp_path / "sets", "insects", **CROPS, data__train_split=train_split).data
    found, records = labels.distributions(data), sources.load(data, "train_split").records
    assert [label for _, label in records.fetch(range(len(records)))] == records.labels
    monkeypatch.setattr(tfds_source.TfdsRecords, "fetch", None)
    clear()
    assert labels.distributions(data) == found and found["train"]["images"] == len(records)


@pytest.mark.parametrize("damage", ["gone", "cut", "short"])
def test_a_data_set_that_takes_long_to_read_has_none(pictures, tmp_path, monkeypatch, damage):
    """One that TFDS or an earlier version wrote, whose labels are in its records only; or one that is damaged."""
    directory = prepare(pictures, tmp_path / "sets", Silent(), name="insects").directory
    paths = [*directory.glob("labels.*.npy")]
    assert len(paths) == 2
    for path in paths:
        if damage == "short":
            np.save(path, np.load(path)[:-1])
        else:
            path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:-3])
    data = settings_for(tmp_path / "sets", "insects", **CROPS).data
    assert labels.distributions(data)["train"]["images"] == 30
    clear()
    monkeypatch.setattr(tfds_source, "LABELS_BYTES", 1000)
    assert labels.distributions(data) == {"train": None, "eval": None}


def test_unreadable_files_of_a_folder_do_not_stop_it(pictures):
    spoil(pictures)
    found = labels.distributions(settings_for(pictures, **CROPS).data)
    assert found["train"]["images"] == 36  # which of them are unreadable is not known before they are decoded
