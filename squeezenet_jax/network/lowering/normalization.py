"""Batch normalisation's sums over a batch: as lax has them, and on a CPU as matrix products.

XLA's CPU backend takes a sum over all but the channels slowly, and a product with ones fast. To the two sums of the
values autodiff adds three; the gradient written out has two.

Dimension letters: those of `lowering`.
"""

import jax
import jax.numpy as jnp
from jax import Array

from squeezenet_jax.network.architecture import NORM_EPSILON

Normalized = tuple[Array, Array, Array]  # of the batch: g (x - m) / sqrt(v + 1e-5) + b [B, H, W, C], m [C], v [C]


def lax_batch_norm(x_BHWC: Array, mask_B: Array, scale_C: Array, bias_C: Array) -> Normalized:
    weight = _weight(x_BHWC, mask_B)[:, None, None, None]
    mean = jnp.sum(weight * x_BHWC, (0, 1, 2))
    centred = _centred(x_BHWC, mask_B, mean)
    var = jnp.sum(weight * centred**2, (0, 1, 2))
    return centred * (scale_C * jax.lax.rsqrt(var + NORM_EPSILON)) + bias_C, mean, var


@jax.custom_vjp
def batch_norm(x_BHWC: Array, mask_B: Array, scale_C: Array, bias_C: Array) -> Normalized:
    """The same, to rounding. The gradient goes through the normalised x only: mean and variance are for averages."""
    positions = x_BHWC.shape[1] * x_BHWC.shape[2]
    weight_N = jnp.repeat(_weight(x_BHWC, mask_B), positions)
    mean = _sum(x_BHWC, weight_N)
    centred = _centred(x_BHWC, mask_B, mean)
    var = _sum(centred**2, weight_N)
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
    mask_N = jnp.repeat(mask_B, x.shape[1] * x.shape[2])
    z = _centred(x, mask_B, mean_C) * factor_C
    dbias_C, dscale_C = _sum(dy, mask_N), _sum(dy * z, mask_N)
    count = jnp.maximum(jnp.sum(mask_N), 1)
    dx = scale_C * factor_C * (dy - dbias_C / count - z * (dscale_C / count))
    return jnp.where(mask_B[:, None, None, None] > 0, dx, 0), jnp.zeros_like(mask_B), dscale_C, dbias_C


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _weight(x_BHWC: Array, mask_B: Array) -> Array:
    """Of each of an example's positions in a mean over the batch, [B]."""
    return mask_B / (jnp.maximum(jnp.sum(mask_B), 1) * x_BHWC.shape[1] * x_BHWC.shape[2])


def _centred(x_BHWC: Array, mask_B: Array, mean_C: Array) -> Array:
    """x - m, 0 for what does not count.

    Without an example variance is 0, and what is multiplied by 1 / sqrt(1e-5) in every layer soon overflows.
    """
    return jnp.where(mask_B[:, None, None, None] > 0, x_BHWC - mean_C, 0)


def _sum(x_BHWC: Array, weight_N: Array) -> Array:
    """Of each channel over all positions, weighted, [C]."""
    return weight_N @ x_BHWC.reshape(-1, x_BHWC.shape[-1])
