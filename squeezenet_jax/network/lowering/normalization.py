"""Batch normalisation's sums over a batch: as lax has them, and on a CPU as matrix products.

XLA's CPU backend takes a sum over all but the channels slowly, and a product with ones fast. To the two sums of the
values autodiff adds three; the gradient written out has two.

Dimension letters: those of `lowering`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from squeezenet_jax.network.architecture import NORM_EPSILON

Normalized = tuple[Array, Array, Array]  # of the batch: g (x - m) / sqrt(v + 1e-5) + b [B, H, W, C], m [C], v [C]
Sum = Callable[[Array, Array], Array]  # of x [B, H, W, C], each example weighted [B], over all but the channels


def lax_batch_norm(x_BHWC: Array, mask_B: Array, scale_C: Array, bias_C: Array) -> Normalized:
    """Of the examples whose mask is 1; for autodiff."""
    return _batch_norm(x_BHWC, mask_B, scale_C, bias_C, _lax_sum)


@jax.custom_vjp
def batch_norm(x_BHWC: Array, mask_B: Array, scale_C: Array, bias_C: Array) -> Normalized:
    """The same, to rounding. The gradient goes through the normalised x only: mean and variance are for averages."""
    return _batch_norm(x_BHWC, mask_B, scale_C, bias_C, _product_sum)


def _batch_norm(x_BHWC: Array, mask_B: Array, scale_C: Array, bias_C: Array, sum_: Sum) -> Normalized:
    weight_B = mask_B / _count(x_BHWC, mask_B)
    mean = sum_(x_BHWC, weight_B)
    centred = _centred(x_BHWC, mask_B, mean)
    var = sum_(centred**2, weight_B)
    return centred * (scale_C * jax.lax.rsqrt(var + NORM_EPSILON)) + bias_C, mean, var


def _batch_norm_forward(
    x_BHWC: Array, mask_B: Array, scale_C: Array, bias_C: Array
) -> tuple[Normalized, tuple[Array, ...]]:
    y, mean, var = batch_norm(x_BHWC, mask_B, scale_C, bias_C)
    return (y, mean, var), (x_BHWC, mask_B, scale_C, mean, jax.lax.rsqrt(var + NORM_EPSILON))


def _batch_norm_backward(saved: tuple[Array, ...], gs: Normalized) -> tuple[Array, Array, Array, Array]:
    """With z the normalised x and s the mean over the batch: dx = g / sqrt(v + 1e-5) (dy - s(dy) - z s(dy z)).

    The loss has no gradient with respect to what does not count; if it had one, it would be left out.
    """
    x, mask_B, scale_C, mean_C, factor_C = saved
    dy, _, _ = gs
    z = _centred(x, mask_B, mean_C) * factor_C
    dbias_C, dscale_C, count = _product_sum(dy, mask_B), _product_sum(dy * z, mask_B), _count(x, mask_B)
    dx = scale_C * factor_C * (dy - dbias_C / count - z * (dscale_C / count))
    return jnp.where(mask_B[:, None, None, None] > 0, dx, 0), jnp.zeros_like(mask_B), dscale_C, dbias_C


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _count(x_BHWC: Array, mask_B: Array) -> Array:
    """How many positions of each channel count; where none does, those of one example."""
    return jnp.maximum(jnp.sum(mask_B), 1) * x_BHWC.shape[1] * x_BHWC.shape[2]


def _centred(x_BHWC: Array, mask_B: Array, mean_C: Array) -> Array:
    """x - m, 0 for what does not count.

    Without an example variance is 0, and what is multiplied by 1 / sqrt(1e-5) in every layer soon overflows.
    """
    return jnp.where(mask_B[:, None, None, None] > 0, x_BHWC - mean_C, 0)


def _lax_sum(x_BHWC: Array, weight_B: Array) -> Array:
    return jnp.sum(weight_B[:, None, None, None] * x_BHWC, (0, 1, 2))


def _product_sum(x_BHWC: Array, weight_B: Array) -> Array:
    """First each row's, then each example's, then over the examples: a product adds one value after another, which
    rounds the more the longer it goes on (benchmarks/LOG.md).
    """
    B, H, W, _ = x_BHWC.shape
    rows_BH1C = jnp.ones((B, H, 1, W), x_BHWC.dtype) @ x_BHWC
    sums_B1C = jnp.ones((B, 1, H), x_BHWC.dtype) @ rows_BH1C[:, :, 0]
    return weight_B @ sums_B1C[:, 0]
