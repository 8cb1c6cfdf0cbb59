"""Convolutions on a CPU: Eigen's, or matrix products, with gradients that both are fast at.

1x1 ones, and small windows with a stride, are one matrix product each; large 3x3 ones are six, by Winograd's algorithm
(Lavin and Gray, arXiv 1509.09308). What each form gains is in benchmarks/README.md.

Dimension letters: those of `lowering`, where these stand in for lax's.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from squeezenet_jax.lowering.outline import outlined

# (before the first, behind the last) row, and the same of columns.
Pads = tuple[tuple[int, int], ...]

# Where other forms than Eigen's convolution are faster on two cores: with a stride, one product with all windows of at
# most 3 x 3 x 3 numbers; else Winograd's, from so many channels and positions on (27 x 27, but not 13 x 13 of one
# image).
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


def conv(
    x_BHWC: Array,
    kernel_HWCO: Array,
    bias_O: Array | None,
    strides: tuple[int, int],
    pads: Pads,
    *,
    winograd_macs: float,
) -> Array:
    """lax's convolution and the bias, to rounding, in the form that is fastest for its size.

    Winograd's, which takes longer to compile, is for `winograd_macs` or more.
    """
    window, channels = kernel_HWCO.shape[:2], kernel_HWCO.shape[2]
    if strides != (1, 1) and math.prod(window) * channels <= MOST_PATCH:
        return add_bias(_patch_conv(x_BHWC, kernel_HWCO, strides, pads), bias_O)
    positions = math.prod(x_BHWC.shape[:3])
    macs = positions * math.prod(kernel_HWCO.shape)
    large = channels >= LEAST_CHANNELS and positions >= LEAST_POSITIONS and macs >= winograd_macs
    # Weighted sums, by up to 19 in all, cost about four bits; bfloat16 has 8.
    if window == (3, 3) and strides == (1, 1) and large and x_BHWC.dtype == jnp.float32:
        return _winograd_conv(x_BHWC, kernel_HWCO, bias_O, pads)
    return add_bias(_eigen_conv(x_BHWC, kernel_HWCO, strides, pads), bias_O)


def add_bias(x_BPQO: Array, bias_O: Array | None) -> Array:
    """x + b for each output channel, or x; the bias's gradient is a product with ones."""
    if bias_O is None:
        return x_BPQO
    x_NO = x_BPQO.reshape(-1, x_BPQO.shape[-1])
    return (x_NO + jnp.ones((len(x_NO), 1), x_NO.dtype) @ bias_O[None]).reshape(x_BPQO.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _eigen_conv(x_BHWC: Array, kernel_HWCO: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """lax's convolution, with gradients that are fast in a loop too."""
    return lax_conv(x_BHWC, kernel_HWCO, strides, pads)


def _eigen_conv_forward(
    x_BHWC: Array, kernel_HWCO: Array, strides: tuple[int, int], pads: Pads
) -> tuple[Array, tuple[Array, Array]]:
    return _eigen_conv(x_BHWC, kernel_HWCO, strides, pads), (x_BHWC, kernel_HWCO)


def _eigen_conv_backward(
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


_eigen_conv.defvjp(_eigen_conv_forward, _eigen_conv_backward)


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


def _patch_conv(x_BHWC: Array, kernel_HWCO: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """One matrix product with all windows, [N, window * C].

    Columns are grouped by the stride s, [B, H, W / s, s * C]; a row of a window is then ceil(columns / s) neighbouring
    groups, the last one cut to what the window covers. Rows are taken with a stride, whose gradient is slow; but a
    stem's input needs none.
    """
    B, H, W, C = x_BHWC.shape
    rows, columns, _, filters = kernel_HWCO.shape
    P, Q = _output_size(x_BHWC, kernel_HWCO, strides, pads)
    neighbours = math.ceil(columns / strides[1])
    height, width = rows + strides[0] * P, strides[1] * (Q + neighbours - 1)
    (top, _), (left, _) = pads
    borders = ((0, 0, 0), (top, height - top - H, 0), (left, width - left - W, 0), (0, 0, 0))
    x = lax.pad(x_BHWC, jnp.zeros((), x_BHWC.dtype), borders)  # or cuts off, where a border is negative
    x = x.reshape(B, height, Q + neighbours - 1, strides[1] * C)
    pieces = [
        x[:, row : row + strides[0] * P : strides[0], first : first + Q, : (columns - strides[1] * first) * C]
        for row, first in itertools.product(range(rows), range(neighbours))
    ]
    patches = jnp.concatenate(pieces, axis=-1)
    y_NO = _matmul(patches.reshape(-1, patches.shape[-1]), kernel_HWCO.reshape(-1, filters))
    return y_NO.reshape(B, P, Q, filters)


def _winograd_conv(x_BHWC: Array, kernel_HWCO: Array, bias_O: Array | None, pads: Pads) -> Array:
    """3x3 with stride 1: F(4, 3) along the rows, the definition along the columns.

    The six products are of matrices [B * tiles * Q, 3 * C] and [3 * C, O], a tile being four rows of the output.
    """
    B, H, W, C = x_BHWC.shape
    (top, _), (left, _) = pads
    P, Q = _output_size(x_BHWC, kernel_HWCO, (1, 1), pads)
    tiles = math.ceil(P / 4)
    x = jnp.pad(x_BHWC, ((0, 0), (top, 4 * (tiles + 1) - top - H), (left, Q + 2 - left - W), (0, 0)))
    x = x.reshape(B, tiles + 1, 4, Q + 2, C)
    # A tile's rows 4 and 5 are 0 and 1 of the next one. Not slices with a stride: in a gradient those are slow.
    inputs = _combine(WINOGRAD_INPUT, [x[:, row // 4 : row // 4 + tiles, row % 4] for row in range(6)])
    kernels = _combine(WINOGRAD_KERNEL, jnp.unstack(kernel_HWCO))
    products = []
    for v, u in zip(inputs, kernels, strict=True):
        product_NO = _matmul(_windows(v).reshape(-1, 3 * C), u.reshape(3 * C, -1))
        products.append(product_NO.reshape(B, tiles, Q, u.shape[-1]))
    # That of the point 1 is added to each of the four rows; so is what is added to it, at a quarter of the cost.
    products[1] = add_bias(products[1], bias_O)
    y = jnp.stack(_combine(WINOGRAD_OUTPUT, products), axis=2)
    return y.reshape(B, 4 * tiles, *y.shape[3:])[:, :P]


@jax.custom_vjp
def _windows(x_BTWC: Array) -> Array:
    """Each three neighbouring columns, [B, T, W - 2, 3, C]."""
    return _select_windows(x_BTWC)


def _windows_forward(x_BTWC: Array) -> tuple[Array, None]:
    return _select_windows(x_BTWC), None


def _windows_backward(_: None, g_BTQ3C: Array) -> tuple[Array]:
    return (_add_windows(g_BTQ3C),)


_windows.defvjp(_windows_forward, _windows_backward)


@outlined
def _select_windows(x_BTWC: Array) -> Array:
    """In selects: XLA writes a stack as scalar code, and with the reshape that follows, these too."""
    Q = x_BTWC.shape[2] - 2
    place = lax.broadcasted_iota(jnp.int32, (3, 1), 0)
    first, second, third = (x_BTWC[:, :, column : column + Q, None] for column in range(3))
    return jnp.where(place == 0, first, jnp.where(place == 1, second, third))


@outlined
def _add_windows(g_BTQ3C: Array) -> Array:
    borders = [((0, 0), (0, 0), (column, 2 - column), (0, 0)) for column in range(3)]
    return functools.reduce(jnp.add, (jnp.pad(g_BTQ3C[..., column, :], borders[column]) for column in range(3)))


def _output_size(x_BHWC: Array, kernel_HWCO: Array, strides: tuple[int, int], pads: Pads) -> tuple[int, int]:
    y = jax.eval_shape(lambda x, kernel: lax_conv(x, kernel, strides, pads), x_BHWC, kernel_HWCO)
    return y.shape[1], y.shape[2]


def _combine(matrix: Sequence[Sequence[float]], arrays: Sequence[Array]) -> list[Array]:
    """matrix @ arrays, each array a row. In sums: a product's operands would have to be stacked."""
    return [functools.reduce(jnp.add, (w * x for w, x in zip(row, arrays, strict=True) if w)) for row in matrix]
