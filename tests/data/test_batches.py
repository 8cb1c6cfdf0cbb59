"""Batches as pure functions, and evaluation batches that hold every example once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from squeezenet_jax.data import batches, catalog
from squeezenet_jax.data.batches import EvalBatches, TrainBatches
from squeezenet_jax.data.sources import InMemory, load
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.system.randomness import Purpose


def source(size):
    return InMemory(np.arange(size, dtype=np.uint8).reshape(size, 1, 1, 1), np.arange(size, dtype=np.int32))


@given(size=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**32 - 1))
def test_an_epoch_holds_every_example_once(size, batch_size, seed):
    train = TrainBatches(source(size), batch_size, seed)
    steps = -(-3 * size // batch_size)
    index = np.concatenate([train.batch_at(step)["index"] for step in range(steps)])
    for epoch in range(3):
        assert sorted(index[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_a_batch_depends_on_seed_and_step_alone():
    train = TrainBatches(source(100), 7, seed=3)
    ahead = train.batch_at(1000)
    batches._order.cache_clear()
    for step in range(5):
        train.batch_at(step)
    for name, array in TrainBatches(source(100), 7, seed=3).batch_at(1000).items():
        np.testing.assert_array_equal(array, ahead[name])
    other = TrainBatches(source(100), 7, seed=4).batch_at(1000)
    assert not np.array_equal(other["index"], ahead["index"])
    assert not np.array_equal(train.batch_at(0)["index"], train.batch_at(100)["index"])  # epochs differ in order


def test_images_and_labels_belong_together():
    batch = TrainBatches(source(50), 8, seed=0).batch_at(2)
    np.testing.assert_array_equal(batch["image"].ravel(), batch["label"])
    np.testing.assert_array_equal(batch["label"], batch["index"])
    assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize("kind", [TrainBatches, EvalBatches])
def test_the_rows_of_two_processes_are_one_batch(kind):
    """Also where a batch spans two epochs, and where the last one is padded."""
    more = (5,) if kind is TrainBatches else ()
    whole, first, second = (kind(source(20), 8, *more, rows=rows) for rows in ((0, None), (0, 4), (4, 8)))
    for position in range(3):
        parts = [batches.batch_at(position) for batches in (first, second)]
        for name, array in whole.batch_at(position).items():
            np.testing.assert_array_equal(array, np.concatenate([part[name] for part in parts]))


@given(size=st.integers(1, 40), batch_size=st.integers(1, 50))
def test_evaluation_counts_every_example_once(size, batch_size):
    seen = []
    batches = EvalBatches(source(size), batch_size)
    for batch in map(batches.batch_at, range(len(batches))):
        assert len(batch["image"]) == batch_size
        seen += list(batch["index"][batch["mask"] == 1])
    assert seen == list(range(size))


class Recorded:
    """A source of 20 examples, the third of which cannot be read, that keeps what it is asked for."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return 20

    def read(self, index, draw):
        self.asked.append((index, draw))
        image = np.zeros((len(index), 1, 1, 1), np.uint8)
        batch = {"image": image, "label": index.astype(np.int32), "mask": (index != 2).astype(np.int32)}
        return batch | {"unreadable": [f"{i}.jpg: empty" for i in index if i == 2]}


def test_an_image_that_cannot_be_read_does_not_count():
    batches = EvalBatches(Recorded(), 8)
    mask = np.concatenate([batches.batch_at(position)["mask"] for position in range(3)])
    np.testing.assert_array_equal(mask, (np.arange(24) < 20) & (np.arange(24) != 2))
    train = TrainBatches(Recorded(), 20, seed=0).batch_at(0)
    np.testing.assert_array_equal(train["mask"], train["index"] != 2)


@pytest.mark.parametrize("rows", [(0, None), (128, 256)])
@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_parts_put_together_are_the_batch_and_name_what_it_names(most, rows):
    """Of at least 64 rows each, so that handing them over costs little beside decoding them."""
    whole = EvalBatches(Recorded(), 256, rows)
    makers = batches.in_parts(whole, most)
    parts = [make(0) for make in makers]
    size = 256 if rows[1] is None else 128
    assert len(parts) == min(most, size // 64)
    assert all(len(part["label"]) >= 64 for part in parts)
    joined, expected = batches.join(parts), whole.batch_at(0)
    assert joined.keys() == expected.keys()
    assert joined["unreadable"] == expected["unreadable"] == (["2.jpg: empty"] if rows[0] == 0 else [])
    for name in ("image", "label", "mask", "index"):
        np.testing.assert_array_equal(joined[name], expected[name])


def test_random_crops_follow_from_seed_purpose_epoch_and_example_and_evaluation_has_none():
    source = Recorded()
    TrainBatches(source, 8, seed=7).batch_at(2)  # examples 16 to 23 in the order of the epochs, of 20 each
    EvalBatches(source, 8).batch_at(2)
    (index, draw), (_, none) = source.asked
    np.testing.assert_array_equal(draw, [(7, Purpose.CROP, place // 20, i) for place, i in enumerate(index, start=16)])
    assert none is None


def test_the_order_of_an_epoch_is_the_permutation_that_anybody_can_draw_again():
    """As `randomness.py` says it: `default_rng([seed, purpose, epoch])`."""
    train = TrainBatches(source(20), 10, seed=7)
    for epoch in range(2):
        index = np.concatenate([train.batch_at(2 * epoch + half)["index"] for half in range(2)])
        np.testing.assert_array_equal(index, np.random.default_rng([7, Purpose.SHUFFLE, epoch]).permutation(20))


def test_an_epoch_has_a_fraction_of_a_step_where_the_batch_does_not_divide_it():
    assert TrainBatches(source(20), 8, seed=0).steps_per_epoch == 2.5


def test_digits_are_scikit_learns_in_a_fixed_stratified_split(tiny):
    from sklearn.datasets import load_digits

    data = tiny(data__image_size=8, data__train_split="train", data__eval_split="test").data
    train, test = load(data, "train_split"), load(data, "eval_split")
    assert (len(train), len(test)) == (1433, 364)
    assert (len(train), len(test)) == tuple(catalog.DATASETS["digits"].splits.values())
    originals = load_digits().images
    pixels = np.concatenate([train.image, test.image])[..., 0] / (255 / 16)
    all_of_them = [sorted(map(tuple, images.reshape(1797, -1))) for images in (originals, np.rint(pixels))]
    assert all_of_them[0] == all_of_them[1]
    counts = np.bincount(np.concatenate([train.label, test.label]))
    np.testing.assert_allclose(np.bincount(test.label) / counts, 0.2, atol=0.005)


def test_images_are_enlarged_to_image_size(tiny):
    large = load(tiny(data__image_size=16).data, "eval_split").image
    small = load(tiny(data__image_size=8).data, "eval_split").image
    assert large.shape == (50, 16, 16, 1)
    np.testing.assert_allclose(large.mean((1, 2)), small.mean((1, 2)), atol=6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train", (0, 1433)),
        ("train[:80%]", (0, 1146)),
        ("train[80%:]", (1146, 1433)),
        ("train[10:20]", (10, 20)),
        ("train[-33:]", (1400, 1433)),
        ("train[:-33]", (0, 1400)),
        ("train[-10%:]", (1290, 1433)),
        ("train[9:-1]", (9, 1432)),
    ],
)
def test_parts_of_a_split(text, expected):
    split = catalog.parse_split("data.train_split", text, "digits", catalog.DATASETS["digits"])
    assert (split.name, split.start, split.stop) == ("train", *expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tran", 'data.train_split: unknown value "tran"; allowed: train, test; did you mean "train"'),
        ("train[80]", "data.train_split: train.80. is not possible; allowed: train, test, or one part of one of them"),
        ("train+test", r"train\+test is not possible"),
        ("train[:80.5%]", "is not possible"),
        ("train[-2000:]", "is examples -567:1433; train of digits has 0:1433"),
        ("train[-1:0]", "is examples 1432:0"),
        ("train[:2000]", "data.train_split: train.* is examples 0:2000; train of digits has 0:1433"),
        ("train[20:20]", "is examples 20:20"),
    ],
)
def test_wrong_splits_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        catalog.parse_split("data.train_split", text, "digits", catalog.DATASETS["digits"])
