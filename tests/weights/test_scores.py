"""What `evaluate` counts is what training's compiled steps count."""

import numpy as np
import pytest

from squeezenet_jax.training import objective
from squeezenet_jax.weights.scores import Scores


@pytest.mark.parametrize("num_classes", [3, 10, 1000])
def test_scores_are_those_of_the_objective(num_classes):
    rng = np.random.default_rng(num_classes)
    logits = rng.normal(size=(64, num_classes)).astype(np.float32) * 4
    logits[:8] = np.round(logits[:8])  # ties
    logits[8:10] = 0  # a dead network
    label = rng.integers(0, num_classes, 64)
    scores = Scores()
    for part in (slice(0, 40), slice(40, 64)):
        scores.add(logits[part], label[part])
    expected = objective.means(objective.total([objective.tally(logits, label, np.ones(64, np.int32))]))
    assert scores.means() == pytest.approx(expected, rel=1e-6)
    assert scores.means() | {"loss": 0} == expected | {"loss": 0}


def test_no_logit_that_is_no_number_is_a_hit():
    logits = np.array([[np.nan, 0, 0], [0, np.inf, 1], [np.inf, np.inf, 0]], np.float32)
    label = np.array([0, 1, 1])
    scores = Scores()
    scores.add(logits, label)
    tally = objective.total([objective.tally(logits, label, np.ones(3, np.int32))])
    assert (scores.top1, scores.top5, scores.count) == (1, 2, 3) == tuple(tally[x] for x in ("top1", "top5", "count"))
    assert np.isnan(scores.means()["loss"])
