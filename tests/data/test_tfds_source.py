"""Reading prepared TFDS data sets without TensorFlow: what is read, what is refused.

Most tests send a few generated images through the real path, with the table of digests replaced by theirs. The tests
named `..._real_...` use the real files of Debian's package `dataset-fashion-mnist` and are skipped without it.
"""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from fashion_files import REPOSITORY, arrays, assert_reads, listing, needs_real_files, put, read_split
from PIL import Image

from squeezenet_jax.data.tfds_source import TfdsRecords
from squeezenet_jax.system.errors import UserError


@pytest.mark.parametrize("part", ["dataset_info.json", "fashion_mnist-test.array_record-00000-of-00001"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_data_set_is_named(tiny_files, tmp_path, part, damage):
    put(tiny_files, tmp_path / "downloads" / "manual")
    assert_reads(tiny_files, tmp_path)
    path = tmp_path / "fashion_mnist" / "3.0.1" / part
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"fashion_mnist.*delete it and start again") as caught:
        read_split("fashion_mnist", "test", str(tmp_path))
    assert "\n" not in str(caught.value)


def test_says_one_line_when_it_prepares_and_none_when_it_reads(tiny_files, tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tiny_files, tmp_path / "sets" / "downloads" / "manual")
    read_split("fashion_mnist", "train", "~/sets")
    assert capfd.readouterr() == ("", f"preparing fashion_mnist in {tmp_path}/sets (once)\n")
    read_split("fashion_mnist", "train", "~/sets")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_splits_in_tfds_notation(tiny_files, tmp_path):
    put(tiny_files, tmp_path / "downloads" / "manual")
    image, label = read_split("fashion_mnist", "train", str(tmp_path))
    part, part_label = read_split("fashion_mnist", "train[10:20]", str(tmp_path))
    np.testing.assert_array_equal(part, image[10:20])
    np.testing.assert_array_equal(part_label, label[10:20])


def test_refuses_an_unknown_or_unprepared_data_set(tmp_path):
    with pytest.raises(UserError, match=r'"fashion_mnst"; allowed: .*; did you mean "fashion_mnist"'):
        read_split("fashion_mnst", "train", str(tmp_path))
    with pytest.raises(UserError, match="has no cifar10; prepare it there: python -m squeezenet_jax prepare"):
        read_split("cifar10", "train", str(tmp_path))
    assert not listing(tmp_path)


class ColourPatches(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Another TFDS data set: colour images, PNG and JPEG, of one size or of unknown size and channels."""

    VERSION = tfds.core.Version("1.0.0")
    shape: tuple[int | None, int | None, int | None] = (6, 5, 3)

    def _info(self) -> Any:
        image = tfds.features.Image(shape=self.shape)
        features = {"image": image, "label": tfds.features.ClassLabel(num_classes=4)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> Any:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for key in range(4):
            file = io.BytesIO()
            image = Image.fromarray(np.full((6, 5, 3), (60 * key, 100, 200), np.uint8))
            image.save(file, "PNG" if key % 2 else "JPEG", **({} if key % 2 else {"quality": 100}))
            yield key, {"image": file.getvalue(), "label": key}


@pytest.mark.parametrize("shape", [(6, 5, 3), (None, None, 3), (None, None, None)])
def test_reads_any_prepared_data_set(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(ColourPatches, "shape", shape)
    ColourPatches(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    image, label = read_split("colour_patches", "train", str(tmp_path), size=8, channels=3)
    assert image.shape == (4, 8, 8, 3) and sorted(label) == [0, 1, 2, 3]
    for row, key in zip(image, label, strict=True):
        np.testing.assert_allclose(row.astype(int), np.broadcast_to((60 * key, 100, 200), (8, 8, 3)), atol=2)  # JPEG


def test_a_split_without_labels_is_refused_before_anything_is_made_of_it(tmp_path, monkeypatch):
    """As TFDS writes ImageNet's test split; -1 would be the last class."""
    examples = [{**example, "label": -1} for _, example in ColourPatches._generate_examples(mock.Mock())]
    monkeypatch.setattr(ColourPatches, "_generate_examples", lambda self: iter(enumerate(examples)))
    ColourPatches(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(UserError, match="images of train have no label; choose another split"):
        TfdsRecords(tmp_path / "colour_patches" / "1.0.0", "train", 0, 4)


def test_a_label_that_is_no_class_is_no_damage(tmp_path, monkeypatch):
    ColourPatches(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    features = tmp_path / "colour_patches" / "1.0.0" / "features.json"
    content = json.loads(features.read_text())
    content["featuresDict"]["features"]["label"] = {"pythonClassName": "Scalar", "tensor": {"dtype": "int64"}}
    features.write_text(json.dumps(content))
    with pytest.raises(UserError, match="must be an Image and a ClassLabel") as caught:
        read_split("colour_patches", "train", str(tmp_path), size=8, channels=3)
    assert "delete" not in str(caught.value)


def test_refuses_records_that_need_tensorflow(tmp_path):
    ColourPatches(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    info = tmp_path / "colour_patches" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="tfrecord, which needs TensorFlow"):
        read_split("colour_patches", "train", str(tmp_path), size=8, channels=3)


def test_needs_neither_tensorflow_nor_jax():
    script = "import sys; import squeezenet_jax.data.tfds_source; print({'jax', 'tensorflow'} & set(sys.modules))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "set()\n", "")


@pytest.mark.slow
@needs_real_files
@pytest.mark.parametrize("split, size", [("train", 60_000), ("test", 10_000)])
def test_real_images_are_those_of_the_files_key_by_key(real_dir, real_files, split, size):
    image, label = read_split("fashion_mnist", split, str(real_dir))
    assert image.shape == (size, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(label), np.full(10, size // 10))  # the classes are balanced
    expected_image, expected_label = arrays(real_files, split)
    np.testing.assert_array_equal(image, expected_image)
    np.testing.assert_array_equal(label, expected_label)


@pytest.mark.slow
@needs_real_files
def test_real_data_set_is_read_by_plain_tfds(real_dir):
    sources = tfds.data_source("fashion_mnist", data_dir=real_dir, download=False)
    assert {split: len(source) for split, source in sources.items()} == {"train": 60_000, "test": 10_000}
    image, label = read_split("fashion_mnist", "test", str(real_dir))
    for index in range(0, 10_000, 997):
        example = sources["test"][index]
        np.testing.assert_array_equal(example["image"], image[index])
        assert example["label"] == label[index]
    assert "tensorflow" not in sys.modules
