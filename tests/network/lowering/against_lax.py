"""Inputs with ties, and lax's own pooling and convolution to compare with."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def images(*shape, dtype="float32"):
    """Normal noise in the first half of the batch; in the rest a ReLU's output on three levels: many ties."""
    x = np.random.default_rng(1).normal(size=shape)
    half = len(x) // 2
    x[half:] = np.clip(np.round(2 * x[half:]), 0, 2)
    return jnp.asarray(x, dtype)


def reference_pool(x, *, ceil):
    pads = [(0, (n - 3) % 2 if ceil else 0) for n in x.shape[1:3]]
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), *pads, (0, 0)])


def lax_conv(x, kernel, strides=(1, 1), padding="VALID"):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def assert_values_and_gradients_equal(f, reference, *args):
    """In float32, to rounding, under a random cotangent."""
    (y, pullback), (expected, expected_pullback) = jax.vjp(jax.jit(f), *args), jax.vjp(jax.jit(reference), *args)
    cotangent = jnp.asarray(np.random.default_rng(3).normal(size=expected.shape), expected.dtype)
    outcomes = zip((y, *pullback(cotangent)), (expected, *expected_pullback(cotangent)), strict=True)
    for value, wanted in outcomes:
        assert value.shape == wanted.shape
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5 * float(jnp.abs(wanted).max(initial=0)))
