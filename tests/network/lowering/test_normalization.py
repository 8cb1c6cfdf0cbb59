"""Batch normalisation on a CPU is lax's, values and gradients, whichever examples count and on however many devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from against_lax import assert_values_and_gradients_equal, images
from jax.sharding import NamedSharding, PartitionSpec

from squeezenet_jax.network import lowering
from squeezenet_jax.network.lowering import normalization

SCALE, BIAS = jnp.linspace(0.5, 2, 6), jnp.linspace(-1, 1, 6)


def normalize(x, scale, bias, mask, form=lowering.batch_norm):
    """Of those that count, as a loss sees them."""
    return jnp.where(mask[:, None, None, None] > 0, form(x, mask, scale, bias)[0], 0)


@pytest.mark.parametrize("mask", [[1] * 8, [1, 0] * 4, [0] * 7 + [1], [0] * 8])
def test_values_and_gradients_are_those_of_lax(mask):
    x, mask = 3 + images(8, 5, 4, 6), jnp.asarray(mask, jnp.float32)
    assert_values_and_gradients_equal(
        lambda *args: normalize(*args, mask),
        lambda *args: normalize(*args, mask, normalization.lax_batch_norm),
        *(x, SCALE, BIAS),
    )
    forms = lowering.batch_norm, normalization.lax_batch_norm
    for found, expected in zip(*(form(x, mask, SCALE, BIAS) for form in forms), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_long_sum_is_as_exact_as_that_of_lax():
    """Products of all values at once have errors of 2.3e-6 and, in the variance, 6.9e-4 here."""
    x = 1 + images(64, 32, 32, 16)
    _, mean, var = normalization.batch_norm(x, jnp.ones(64), jnp.ones(16), jnp.zeros(16))
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=0, atol=2e-6)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=0, atol=2e-6)


def test_examples_that_do_not_count_get_no_gradient():
    x, mask = images(4, 3, 3, 6), jnp.asarray([1, 1, 0, 0])
    gradient = jax.grad(lambda x: (normalize(x, SCALE, BIAS, mask) ** 3).sum())(x)
    assert np.abs(gradient[:2]).max() > 0.1
    np.testing.assert_array_equal(gradient[2:], 0)


def test_a_batch_that_is_split_over_devices_is_one_batch():
    x, mask = 3 + images(2 * jax.device_count(), 3, 3, 6), jnp.ones(2 * jax.device_count())
    gradient = jax.jit(jax.grad(lambda x: (normalize(x, SCALE, BIAS, mask) ** 3).sum()))
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(gradient(sharded), gradient(x), rtol=1e-4, atol=1e-3)


def test_off_the_cpu_it_is_that_of_lax(monkeypatch):
    monkeypatch.setattr(lowering, "_on_cpu", lambda: False)
    text = str(jax.make_jaxpr(lambda x: normalize(x, SCALE, BIAS, jnp.ones(2)))(images(2, 3, 3, 6)))
    assert "dot_general" not in text and "custom_vjp" not in text
