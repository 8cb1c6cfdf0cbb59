"""Convolutions by Winograd's algorithm (Lavin and Gray, arXiv 1509.09308), on a CPU.

Dimension letters: those of `lowering`; T tiles, each of four rows of the output; the padded input has U = T + 1 times
four rows and V = Q + 2 columns.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from squeezenet_jax.network.lowering.outline import outlined
from squeezenet_jax.network.lowering.plain import Pads, output_size
from squeezenet_jax.network.lowering.products import add_bias, matmul

Matrix = Sequence[Sequence[float]]

# F(4, 3) at 0, 1, -1, 2, -2 and infinity: four neighbours of the output from six products instead of twelve.
# y = OUTPUT ((KERNEL k) * (INPUT x)), for six x and three k.
INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def winograd_conv(x_BHWC: Array, kernel_HWCO: Array, bias_O: Array | None, pads: Pads) -> Array:
    """3x3 with stride 1: F(4, 3) along the rows, the definition along the columns.

    The six products are of matrices [B * tiles * Q, 3 * C] and [3 * C, O], a tile being four rows of the output.
    """
    B, H, W, C = x_BHWC.shape
    (top, _), (left, _) = pads
    P, Q = output_size(x_BHWC, kernel_HWCO, (1, 1), pads)
    tiles = math.ceil(P / 4)
    x = jnp.pad(x_BHWC, ((0, 0), (top, 4 * (tiles + 1) - top - H), (left, Q + 2 - left - W), (0, 0)))
    x = x.reshape(B, tiles + 1, 4, Q + 2, C)
    products = []
    for windows, u in zip(_windows(x), _combine(KERNEL, jnp.unstack(kernel_HWCO)), strict=True):
        product_NO = matmul(windows.reshape(-1, 3 * C), u.reshape(3 * C, -1))
        products.append(product_NO.reshape(B, tiles, Q, u.shape[-1]))
    # That of the point 1 is added to each of the four rows; so is what is added to it, at a quarter of the cost.
    products[1] = add_bias(products[1], bias_O)
    y = jnp.stack(_combine(OUTPUT, products), axis=2)
    return y.reshape(B, 4 * tiles, *y.shape[3:])[:, :P]


def _inputs(x_BU4VC: Array, matrix: Matrix = INPUT) -> list[Array]:
    """What products see of each column of a tile, [B, T, V, C]."""
    # A tile's rows 4 and 5 are 0 and 1 of the next one. Not slices with a stride: in a gradient those are slow.
    tiles = x_BU4VC.shape[1] - 1
    return _combine(matrix, [x_BU4VC[:, row // 4 : row // 4 + tiles, row % 4] for row in range(6)])


@jax.custom_vjp
def _windows(x_BU4VC: Array) -> list[Array]:
    """For each product, what it sees of three neighbouring columns, [B, T, Q, 3, C]."""
    return [_select_windows(x_BU4VC, row) for row in INPUT]


def _windows_forward(x_BU4VC: Array) -> tuple[list[Array], Array]:
    return _windows(x_BU4VC), x_BU4VC


def _windows_backward(x_BU4VC: Array, gs_BTQ3C: list[Array]) -> tuple[Array]:
    # x is there for its shape only.
    transposed = jax.linear_transpose(_inputs, x_BU4VC)
    (gradient,) = transposed([_add_windows(g) for g in gs_BTQ3C])
    return (gradient,)


_windows.defvjp(_windows_forward, _windows_backward)


@functools.partial(outlined, static_argnames="row")
def _select_windows(x_BU4VC: Array, row: tuple[float, ...]) -> Array:
    """Of one product. Selects, because XLA writes a stack as scalar code; outlined, because with the caller's reshape
    these would be scalar code too.
    """
    (v_BTVC,) = _inputs(x_BU4VC, (row,))
    Q = v_BTVC.shape[2] - 2
    place = lax.broadcasted_iota(jnp.int32, (3, 1), 0)
    first, second, third = (v_BTVC[:, :, column : column + Q, None] for column in range(3))
    return jnp.where(place == 0, first, jnp.where(place == 1, second, third))


@outlined
def _add_windows(g_BTQ3C: Array) -> Array:
    """The gradient of the columns, [B, T, V, C]; outlined, because six sums of rows read it."""
    borders = [((0, 0), (0, 0), (column, 2 - column), (0, 0)) for column in range(3)]
    return functools.reduce(jnp.add, (jnp.pad(g_BTQ3C[..., column, :], borders[column]) for column in range(3)))


def _combine(matrix: Matrix, arrays: Sequence[Array]) -> list[Array]:
    """matrix @ arrays, each array a row. In sums: a product's operands would have to be stacked."""
    return [functools.reduce(jnp.add, (w * x for w, x in zip(row, arrays, strict=True) if w)) for row in matrix]
