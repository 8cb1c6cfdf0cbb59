"""Images on disk as a source: what is decoded when, odd files, and that a folder is the data set prepared from it."""

import numpy as np
import pytest
from picture_folders import CROPS, assert_same_batches, batches, clear, makers, settings_for, spoil

from squeezenet_jax.data import catalog, sources
from squeezenet_jax.data.loader import Loader
from squeezenet_jax.data.prepare.writer import prepare
from squeezenet_jax.system.errors import UserError


class Silent:
    def begin(self, what, total, unit): ...

    def advance(self, count): ...

    def say(self, text): ...


def test_what_a_folder_leaves_open_is_read_from_it(pictures):
    data = settings_for(pictures).data
    assert (data.num_classes, data.eval_split) == (3, "validation")
    assert len(sources.load(data, "train_split")) == 30
    assert len(sources.load(data, "eval_split")) == 9
    labels = np.concatenate([batch["label"][batch["mask"] == 1] for batch in batches(settings_for(pictures))[-3:]])
    np.testing.assert_array_equal(np.bincount(labels), [3, 3, 3])


@pytest.mark.parametrize("changes", [{}, CROPS], ids=["whole", "random_resized"])
def test_a_folder_and_the_data_set_made_from_it_give_the_same_batches(pictures, tmp_path, changes):
    prepare(pictures, tmp_path / "sets", Silent(), name="insects")
    prepared = settings_for(tmp_path / "sets", "insects", **changes)
    from_folder = batches(settings_for(pictures, **changes))
    assert_same_batches(from_folder, batches(prepared))
    assert_same_batches(from_folder, batches(prepared, workers=1))  # another process opens the records for itself


def test_images_in_memory_are_those_decoded_when_asked_for(pictures, monkeypatch):
    settings = settings_for(pictures)
    in_memory = batches(settings)
    assert isinstance(sources.load(settings.data, "train_split"), sources.InMemory)
    clear()
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
    assert isinstance(sources.load(settings.data, "train_split"), sources.Encoded)
    assert_same_batches(in_memory, batches(settings))


def test_crops_differ_by_epoch_example_and_seed(pictures):
    source = sources.load(settings_for(pictures, **CROPS).data, "train_split")
    index = np.zeros(2, int)
    first = source.read(index, np.array([[0, 4, 0, 0], [0, 4, 1, 0]]))["image"]
    again = source.read(index, np.array([[0, 4, 0, 0], [1, 4, 0, 0]]))["image"]
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(again[0], again[1])


@pytest.mark.parametrize("changes", [{}, CROPS], ids=["whole", "random_resized"])
def test_unreadable_images_count_nothing_and_are_named_once(pictures, changes):
    bad = spoil(pictures)
    settings = settings_for(pictures, **changes)
    notices = []
    with Loader(makers(settings), 0, notices.append) as loader:
        epochs = list(loader.stream("train", range(18)))  # 36 images in batches of 7: three and a half epochs
        assert {"/".join(name.partition(":")[0].split("/")[-2:]) for name in loader.unreadable} == bad
    assert len(notices) == 3
    index = np.concatenate([batch["index"][batch["mask"] == 0] for batch in epochs])
    assert len(set(index)) == 3
    for batch in epochs:
        assert not batch["image"][batch["mask"] == 0].any()
        assert batch["image"][batch["mask"] == 1].reshape(int(batch["mask"].sum()), -1).any(1).all()


def test_an_image_that_vanishes_in_mid_epoch_is_left_out(pictures):
    settings = settings_for(pictures, **CROPS)
    made = makers(settings)
    (pictures / "train/ant/3.jpg").unlink()
    notices = []
    with Loader(made, None, notices.append) as loader:
        masks = np.concatenate([batch["mask"] for batch in loader.stream("train", range(30))])
    assert np.sum(masks == 0) == 7  # 210 examples are seven epochs
    assert len(notices) == 1 and "ant/3.jpg: No such file" in notices[0]


@pytest.mark.parametrize(
    ("directory", "message"), [("train", "data.dir: .*has no split folders"), ("nowhere", "data.dir: .*is no folder")]
)
def test_what_is_no_folder_of_images_is_refused(pictures, directory, message):
    with pytest.raises(UserError, match=message):
        catalog.info("folder", str(pictures / directory))


def test_a_split_that_the_folder_lacks_is_refused(pictures):
    with pytest.raises(UserError, match=r'data\.eval_split: unknown value "test"; allowed: train, validation'):
        catalog.check(settings_for(pictures, data__eval_split="test").data)
