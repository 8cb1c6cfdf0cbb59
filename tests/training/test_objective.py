"""Loss and metrics, against scikit-learn and plain counting."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss, top_k_accuracy_score

from squeezenet_jax.system.errors import UserError
from squeezenet_jax.training import objective


def test_means_equal_scikit_learn():
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(200, 12)).astype(np.float32), rng.integers(0, 12, 200)
    means = objective.means(objective.total([objective.tally(jnp.asarray(logits), jnp.asarray(label), jnp.ones(200))]))
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = (probabilities / probabilities.sum(1, keepdims=True)).astype(np.float64)
    assert means["loss"] == pytest.approx(log_loss(label, probabilities, labels=range(12)), rel=1e-5)
    assert means["top1"] == pytest.approx(top_k_accuracy_score(label, logits, k=1, labels=range(12)))
    assert means["top5"] == pytest.approx(top_k_accuracy_score(label, logits, k=5, labels=range(12)))
    assert means["count"] == 200


def test_masked_examples_count_nothing_whatever_they_hold():
    logits = jnp.array([[2.0, 1.0], [jnp.nan, jnp.inf], [0.0, 3.0]])
    label, mask = jnp.array([0, 1, 0]), jnp.array([1, 0, 1])
    tally = objective.tally(logits, label, mask)
    assert (tally["count"], tally["top1"]) == (2, 1)
    assert tally["loss"] == pytest.approx(math.log1p(math.exp(-1)) + math.log1p(math.exp(3)), rel=1e-6)


def test_smoothed_labels_are_spread_over_all_classes_and_their_cross_entropy_is_the_sum_over_them():
    rng = np.random.default_rng(0)
    logits, label, mask = (
        rng.normal(size=(6, 5)).astype(np.float32),
        rng.integers(0, 5, 6),
        np.array([1, 1, 0, 1, 0, 1]),
    )
    target = objective.soft_labels(label, 5, smoothing=0.2)
    expected = np.full((6, 5), 0.2 / 5)
    expected[np.arange(6), label] += 0.8
    np.testing.assert_allclose(target, expected, rtol=1e-6)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    tally = objective.tally(jnp.asarray(logits), label, mask, target)
    assert tally["loss"] == pytest.approx(-(mask[:, None] * expected * np.log(probabilities)).sum(), rel=1e-5)
    plain = objective.tally(jnp.asarray(logits), label, mask)
    assert [tally[name] for name in ("top1", "top5", "count")] == [plain[name] for name in ("top1", "top5", "count")]
    unsmoothed = objective.tally(jnp.asarray(logits), label, mask, objective.soft_labels(label, 5, smoothing=0.0))
    assert unsmoothed["loss"] == pytest.approx(float(plain["loss"]), rel=1e-6)
    guessing = objective.tally(jnp.zeros((6, 5)), label, mask, target)
    assert guessing["loss"] == pytest.approx(4 * math.log(5), rel=1e-6)


def test_a_masked_example_that_would_be_a_hit_is_none():
    logits, label = jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.array([0, 0])
    tally = objective.tally(logits, label, jnp.array([1, 0]))
    assert (tally["top1"], tally["top5"], tally["count"]) == (1, 1, 1)


def batches(logits, label, size):
    """Batches of `size`, the last one filled up with masked copies of the first example."""
    for start in range(0, len(label), size):
        index = np.arange(start, start + size)
        real = index < len(label)
        index = np.where(real, index, 0)
        yield {"image": logits[index], "label": label[index], "mask": real.astype(np.int32)}


@pytest.mark.parametrize("size", [1, 7, 8, 32])
def test_an_evaluation_in_batches_is_that_of_all_examples_at_once(size):
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(29, 12)).astype(np.float32), rng.integers(0, 12, 29)

    def tally_of(batch):  # the network that gives back what it is given
        return objective.tally(batch["image"], batch["label"], batch["mask"])

    means = objective.evaluate(tally_of, batches(logits, label, size))
    hits = {k: top_k_accuracy_score(label, logits, k=k, labels=range(12)) for k in (1, 5)}
    assert (means["top1"], means["top5"], means["count"]) == (hits[1], hits[5], 29)
    assert means["loss"] == pytest.approx(float(objective.tally(logits, label, np.ones(29))["loss"]) / 29, rel=1e-6)


def test_an_evaluation_of_images_none_of_which_can_be_read_is_refused():
    batch = {"image": np.zeros((2, 3), np.float32), "label": np.zeros(2, np.int32), "mask": np.zeros(2, np.int32)}
    with pytest.raises(UserError, match="none of the images could be read"):
        objective.evaluate(lambda batch: objective.tally(batch["image"], batch["label"], batch["mask"]), [batch])


def test_equal_logits_score_chance_and_not_everything():
    label = jnp.arange(10)
    rank = objective.label_rank(jnp.zeros((10, 10)), label)
    np.testing.assert_array_equal(rank, label)  # argmax's order: a dead network answers class 0


def test_the_top_classes_are_in_the_order_by_which_hits_are_counted():
    """With equal logits too, and with both zeros."""
    rng = np.random.default_rng(0)
    logits = rng.integers(-1, 2, (300, 7)).astype(np.float32) * rng.choice([1.0, 0.0, -0.0], (300, 7))
    batch = {"label": jnp.asarray(rng.integers(0, 7, 300)), "index": jnp.arange(300), "mask": jnp.ones(300, jnp.int32)}
    outcomes = objective.outcomes(jnp.asarray(logits), batch)
    rank = np.asarray(objective.label_rank(jnp.asarray(logits), batch["label"]))
    at = np.asarray(outcomes["top"]) == np.asarray(batch["label"])[:, None]
    np.testing.assert_array_equal(np.where(at.any(1), at.argmax(1), 5), np.minimum(rank, 5))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(outcomes["probability"], chances[np.arange(300), batch["label"]], rtol=1e-5)


def test_a_row_with_a_nan_is_never_a_hit():
    for logits in (jnp.full((1, 3), jnp.nan), jnp.array([[1.0, 2.0, jnp.nan]])):
        tally = objective.tally(logits, jnp.array([1]), jnp.ones(1))
        assert (tally["top1"], tally["top5"]) == (0, 0)


def test_tallies_add_up_exactly_beyond_float32():
    million = [{"top1": np.int32(1), "count": np.int32(2**24 + 1), "loss": np.float32(1), "top5": np.int32(1)}] * 3
    assert objective.total(million)["count"] == 3 * (2**24 + 1)
