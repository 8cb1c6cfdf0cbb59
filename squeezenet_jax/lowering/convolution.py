"""Convolutions on a CPU: Eigen's, or matrix products, with gradients that both are fast at.

For inference also patches for a stem, and Winograd's algorithm (Lavin and Gray, arXiv 1509.09308). In a training step
neither pays (benchmarks/README.md).

Dimension letters: those of `lowering`, where these stand in for lax's.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

# (before the first, behind the last) row, and the same of columns.
Pads = tuple[tuple[int, int], ...]

# Where the forms for inference are faster on two cores: patches for windows of at most 3 x 3 x 3 numbers, Winograd's
# for so many channels and positions (27 x 27, but not 13 x 13 of one image).
MOST_PATCH, LEAST_CHANNELS, LEAST_POSITIONS = 27, 16, 512
# F(4, 3) at 0, 1, -1, 2, -2 and infinity: four neighbours of the output from six products instead of twelve.
# y = OUTPUT ((KERNEL k) * (INPUT x)), for six x and three k.
WINOGRAD_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
WINOGRAD_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
WINOGRAD_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def lax_conv(
    x_BHWC: Array,
    kernel_HWCO: Array,
    strides: tuple[int, int],
    pads: Pads,
    lhs_dilation: tuple[int, int] = (1, 1),
    rhs_dilation: tuple[int, int] = (1, 1),
) -> Array:
    """lax's convolution of [B, H, W, C] with [window, C, O] -> [B, P, Q, O]."""
    numbers = ("NHWC", "HWIO", "NHWC")
    y: Array = lax.conv_general_dilated(
        x_BHWC, kernel_HWCO, strides, pads, lhs_dilation, rhs_dilation, dimension_numbers=numbers
    )
    return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x_BHWC: Array, kernel_HWCO: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """lax's convolution, with gradients that are fast in a loop too."""
    return lax_conv(x_BHWC, kernel_HWCO, strides, pads)


def _conv_forward(
    x_BHWC: Array, kernel_HWCO: Array, strides: tuple[int, int], pads: Pads
) -> tuple[Array, tuple[Array, Array]]:
    return conv(x_BHWC, kernel_HWCO, strides, pads), (x_BHWC, kernel_HWCO)


def _conv_backward(
    strides: tuple[int, int], pads: Pads, saved: tuple[Array, Array], g_BPQO: Array
) -> tuple[Array, Array]:
    """dx[i] = sum over w of g'[i + before - w] k[w], and dk[w] = sum over p of x[s p + w - before] g[p].

    s is the stride, `before` the padding, and g' is g with s - 1 zeros between its elements: convolutions both.
    lax's own derivatives are the same convolutions with axes renamed instead of transposed. XLA's CPU backend turns
    those for Eigen, but not inside of a loop; there they take ten times as long.
    """
    x_BHWC, kernel_HWCO = saved
    pads_x, pads_kernel = [], []
    for (before, _), size, window, stride, steps in zip(
        pads, x_BHWC.shape[1:3], kernel_HWCO.shape[:2], strides, g_BPQO.shape[1:3], strict=True
    ):
        extent = max(0, (steps - 1) * stride + 1)  # of g'
        pads_x.append((window - 1 - before, size - extent + before))
        pads_kernel.append((before, window - 1 + extent - size - before))
    turned_HWOC = kernel_HWCO[::-1, ::-1].swapaxes(2, 3)
    gradient_x = lax_conv(g_BPQO, turned_HWOC, (1, 1), tuple(pads_x), lhs_dilation=strides)
    x_CHWB, g_PQBO = x_BHWC.transpose(3, 1, 2, 0), g_BPQO.transpose(1, 2, 0, 3)
    gradient_CHWO = lax_conv(x_CHWB, g_PQBO, (1, 1), tuple(pads_kernel), rhs_dilation=strides)
    return gradient_x, gradient_CHWO.transpose(1, 2, 0, 3)


conv.defvjp(_conv_forward, _conv_backward)


def pointwise_conv(parts: Sequence[Array], kernel_CO: Array) -> Array:
    """A 1x1 convolution with stride 1 of arrays [B, H, W, C'] whose channels, one after another, are C."""
    ends = itertools.accumulate(part.shape[-1] for part in parts)
    kernels = jnp.split(kernel_CO, list(ends)[:-1])
    # As matrices: the gradient of a product over three dimensions would transpose them.
    products = (_matmul(part.reshape(-1, part.shape[-1]), kernel) for part, kernel in zip(parts, kernels, strict=True))
    y_NO: Array = functools.reduce(jnp.add, products)
    return y_NO.reshape(*parts[0].shape[:-1], -1)


@jax.custom_vjp
def _matmul(x_NC: Array, kernel_CO: Array) -> Array:
    return x_NC @ kernel_CO


def _matmul_forward(x_NC: Array, kernel_CO: Array) -> tuple[Array, tuple[Array, Array]]:
    return _matmul(x_NC, kernel_CO), (x_NC, kernel_CO)


def _matmul_backward(saved: tuple[Array, Array], g_NO: Array) -> tuple[Array, Array]:
    """The kernel's gradient is x^T g, or (g^T x)^T where that puts the narrower matrix first: up to 3 times as fast."""
    x_NC, kernel_CO = saved
    if x_NC.shape[1] <= g_NO.shape[1]:
        return g_NO @ kernel_CO.T, x_NC.T @ g_NO
    # Without the barrier XLA would turn it into x^T g.
    return g_NO @ kernel_CO.T, lax.optimization_barrier(g_NO.T @ x_NC).T


_matmul.defvjp(_matmul_forward, _matmul_backward)


def inference_conv(x_BHWC: Array, kernel_HWCO: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """lax's convolution, to rounding, in the fastest form without a gradient."""
    window, channels = kernel_HWCO.shape[:2], kernel_HWCO.shape[2]
    if strides != (1, 1) and math.prod(window) * channels <= MOST_PATCH:
        return _patch_conv(x_BHWC, kernel_HWCO, strides, pads)
    large = channels >= LEAST_CHANNELS and math.prod(x_BHWC.shape[:3]) >= LEAST_POSITIONS
    # Weighted sums, by up to 19 in all, cost about four bits; bfloat16 has 8.
    if strides == (1, 1) and window == (3, 3) and large and x_BHWC.dtype == jnp.float32:
        return _winograd_conv(x_BHWC, kernel_HWCO, pads)
    return lax_conv(x_BHWC, kernel_HWCO, strides, pads)


def _patch_conv(x_BHWC: Array, kernel_HWCO: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """One matrix product with the gathered windows, [N, window * C]; their indices are a constant of the program."""
    x = jnp.pad(x_BHWC, ((0, 0), *pads, (0, 0)))
    B, height, width, C = x.shape
    rows, columns = (  # [P, window], [Q, window]
        stride * np.arange((size - window) // stride + 1)[:, None] + np.arange(window)
        for size, window, stride in zip((height, width), kernel_HWCO.shape[:2], strides, strict=True)
    )
    places = np.arange(height * width * C).reshape(height, width, C)[rows[:, None, :, None], columns[:, None]]
    patches = jnp.take(x.reshape(B, -1), places.ravel(), axis=1, mode="clip")  # "fill" would test every place
    kernel = kernel_HWCO.reshape(-1, kernel_HWCO.shape[-1])
    y_NO = patches.reshape(-1, len(kernel)) @ kernel
    return y_NO.reshape(B, len(rows), len(columns), y_NO.shape[-1])


def _winograd_conv(x_BHWC: Array, kernel_HWCO: Array, pads: Pads) -> Array:
    """3x3 with stride 1, by F(4, 3) along the columns."""
    W = x_BHWC.shape[2]
    pads_H, (left, right) = pads
    Q = W + left + right - 2
    tiles = math.ceil(Q / 4)
    x = jnp.pad(x_BHWC, ((0, 0), (0, 0), (left, 4 * tiles + 2 - W - left), (0, 0)))
    inputs = _combine(WINOGRAD_INPUT, [x[:, :, column : column + 4 * tiles - 3 : 4] for column in range(6)])
    kernels = _combine(WINOGRAD_KERNEL, jnp.unstack(kernel_HWCO, axis=1))
    products = [lax_conv(v, u[:, None], (1, 1), (pads_H, (0, 0))) for v, u in zip(inputs, kernels, strict=True)]
    y = jnp.stack(_combine(WINOGRAD_OUTPUT, products), axis=3)  # [B, P, tiles, 4, O]
    return y.reshape(*y.shape[:2], 4 * tiles, y.shape[-1])[:, :, :Q]


def _combine(matrix: Sequence[Sequence[float]], arrays: Sequence[Array]) -> list[Array]:
    """matrix @ arrays, each array a row. In sums: a product's operands would have to be stacked."""
    return [functools.reduce(jnp.add, (w * x for w, x in zip(row, arrays, strict=True) if w)) for row in matrix]
