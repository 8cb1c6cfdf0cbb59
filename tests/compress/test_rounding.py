"""Rounding with compensation, on one small layer."""

import numpy as np
import pytest

from squeezenet_jax.compress import rounding

STEP = 0.25


@pytest.fixture
def layer():
    """Weights [8, 30], two thirds of them 0 at each row's own places, and moments of inputs that go together."""
    rng = np.random.default_rng(0)
    weight_OD = rng.normal(size=(8, 30)) * (rng.random((8, 30)) < 1 / 3)
    inputs_ND = np.maximum(rng.normal(size=(200, 6)) @ rng.normal(size=(6, 30)) + 0.3 * rng.normal(size=(200, 30)), 0)
    return weight_OD, inputs_ND.T @ inputs_ND / 200


def error(difference_OD, moment_DD):
    return float(np.sum((difference_OD @ moment_DD) * difference_OD))


def test_compensation_leaves_less_error_than_the_nearest_multiples(layer):
    weight_OD, moment_DD = layer
    code_OD = rounding.compensated(weight_OD, moment_DD, STEP)
    nearest = error(weight_OD - np.rint(weight_OD / STEP) * STEP, moment_DD)
    assert error(weight_OD - code_OD * STEP, moment_DD) < 0.6 * nearest


def test_a_removed_weight_stays_removed_and_rows_do_not_depend_on_each_other(layer):
    weight_OD, moment_DD = layer
    code_OD = rounding.compensated(weight_OD, moment_DD, STEP)
    assert not code_OD[weight_OD == 0].any()
    for row in range(len(weight_OD)):
        np.testing.assert_array_equal(rounding.compensated(weight_OD[row : row + 1], moment_DD, STEP)[0], code_OD[row])


def test_many_rows_are_computed_in_parts(layer, monkeypatch):
    weight_OD, moment_DD = layer
    whole_OD = rounding.compensated(weight_OD, moment_DD, STEP)
    monkeypatch.setattr(rounding, "CHUNK_VALUES", 1)
    np.testing.assert_array_equal(rounding.compensated(weight_OD, moment_DD, STEP), whole_OD)


def test_full_rows_share_their_matrix_and_have_the_same_codes_as_without_sharing(layer):
    _, moment_DD = layer
    weight_OD = np.random.default_rng(1).normal(size=(5, 30)) + 3
    code_OD = rounding.compensated(weight_OD, moment_DD, STEP)
    weight_OD[4, 7] = 0  # so that the rows have matrices of their own
    np.testing.assert_array_equal(rounding.compensated(weight_OD, moment_DD, STEP)[:4], code_OD[:4])


def test_fine_steps_reach_what_the_slope_asks_for_among_the_free_weights(layer):
    weight_OD, moment_DD = layer
    slope_OD = np.random.default_rng(2).normal(size=weight_OD.shape)
    found_OD = rounding.compensated(weight_OD, moment_DD, 0.05, slope_OD=slope_OD) * 0.05
    gradient_OD = (weight_OD - found_OD) @ rounding.damped(moment_DD) + slope_OD  # 0 at the minimum
    free_OD = weight_OD != 0
    assert np.abs(gradient_OD[free_OD]).mean() < 0.2 * np.abs(slope_OD[free_OD]).mean()


def test_an_input_that_is_always_zero_is_no_obstacle():
    weight_OD = np.array([[1.0, 0.6], [0.2, 0.0]])
    np.testing.assert_array_equal(rounding.compensated(weight_OD, np.zeros((2, 2)), 0.5), [[2, 1], [0, 0]])
