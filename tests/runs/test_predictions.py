"""predictions.npz: what evaluations gave, by image; small, exact and the same bytes each time."""

import numpy as np
import pytest

from squeezenet_jax.runs import predictions
from squeezenet_jax.system.errors import UserError


def a_batch(index, mask, classes=10):
    rng = np.random.default_rng(0)
    index = np.array(index, np.int32)
    top = np.array([rng.permutation(classes)[:5] for _ in index], np.int32)
    label = (index % classes).astype(np.int32)
    probability = np.linspace(0, 1, len(index), dtype=np.float32)
    return {"index": index, "label": label, "mask": np.array(mask), "top": top, "probability": probability}


def test_padding_and_unreadable_images_are_left_out_and_the_rest_is_in_order(tmp_path):
    batches = [a_batch([3, 2, 5], [1, 1, 0]), a_batch([7, 0, 0], [1, 1, 0])]  # 5 cannot be read, the last 0 is padding
    predictions.save(tmp_path, predictions.join(batches))
    found = predictions.load(tmp_path)
    np.testing.assert_array_equal(found.index, [0, 2, 3, 7])
    np.testing.assert_array_equal(found.label, [0, 2, 3, 7])
    np.testing.assert_array_equal(found.top[[1, 2]], batches[0]["top"][[1, 0]])
    np.testing.assert_array_equal(found.probability, np.float32([0.5, 0.5, 0, 0]))
    assert found.label.dtype == found.top.dtype == np.uint8


def test_the_file_of_ten_thousand_images_of_a_thousand_classes_is_small_and_always_the_same(tmp_path):
    joined = predictions.join([a_batch(range(10_000), [1] * 10_000, classes=1000)])
    assert joined.top.dtype == np.uint16
    contents = set()
    for _ in range(2):
        predictions.save(tmp_path, joined)
        contents.add((tmp_path / predictions.NAME).read_bytes())
    assert len(contents) == 1 and len(contents.pop()) < 200_000


def test_a_run_without_the_file_has_none_and_a_damaged_one_is_named(tmp_path):
    assert predictions.load(tmp_path) is None
    for content in (b"", b"PK\x03\x04 and then nothing"):
        (tmp_path / predictions.NAME).write_bytes(content)
        with pytest.raises(UserError, match=r"predictions\.npz: cannot be read"):
            predictions.load(tmp_path)
