"""Max-pooling on a CPU: maxima of shifted arrays, and a gradient by the place of the maximum.

Dimension letters: those of `lowering`, where it stands in for lax's.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax import Array

from squeezenet_jax.network.architecture import POOL_STRIDE as STRIDE
from squeezenet_jax.network.architecture import POOL_WINDOW as WINDOW

# A place in a pool's window as one number: ROW * row + column, each from 0 to 2. A row or column 3 is outside of it.
ROW, NOWHERE = 4, 255


def _window_count(size: int, ceil: bool) -> int:
    steps = (size - WINDOW) / STRIDE
    return max(0, (math.ceil(steps) if ceil else math.floor(steps)) + 1)


def padding(size: int, ceil: bool) -> tuple[int, int]:
    """What the last of a pool's windows needs before the first and behind the last of `size` elements."""
    return 0, max(0, STRIDE * _window_count(size, ceil) + 1 - size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_pool(x_BHWC: Array, ceil: bool, size: tuple[int, int]) -> Array:
    """`size` is (H, W), which the gradient needs and cannot see."""
    return functools.reduce(jnp.maximum, _windows(x_BHWC, ceil).values())


def _max_pool_forward(x_BHWC: Array, ceil: bool, size: tuple[int, int]) -> tuple[Array, Array]:
    """Also the place of each window's first maximum in row-major order, uint8 [B, P, Q, C]."""
    ((row, column), highest), *others = reversed(_windows(x_BHWC, ceil).items())
    place = jnp.full(highest.shape, ROW * row + column, jnp.uint8)
    for (row, column), earlier in others:
        wins = earlier >= highest
        place, highest = jnp.where(wins, ROW * row + column, place), jnp.where(wins, earlier, highest)
    # Not `highest`: where 0.0 and -0.0 meet, training would have other bits than evaluation.
    return max_pool(x_BHWC, ceil, size), place


def _max_pool_backward(ceil: bool, size: tuple[int, int], place_BPQC: Array, g_BPQC: Array) -> tuple[Array]:
    """For each element of x, the sum of the gradients of those of its (up to) four windows whose maximum it is.

    Element (r, c) is in the windows (r // 2 - up, c // 2 - left), up and left being 0 or 1, there in row r % 2 + 2 up
    and column c % 2 + 2 left. A row or column 3 lies outside of that window, and equals no place.
    """
    (height, width), (P, Q) = ((math.ceil(n / STRIDE) for n in size), g_BPQC.shape[1:3])
    border = ((0, 0), (1, height - P), (1, width - Q), (0, 0))
    g, place = jnp.pad(g_BPQC, border), jnp.pad(place_BPQC, border, constant_values=NOWHERE)
    parity = jnp.arange(STRIDE, dtype=place.dtype)
    total = jnp.zeros((), g.dtype)
    for up, left in itertools.product(range(2), repeat=2):
        # [B, height, 1, width, 1, C], and of an element's row's and column's parity.
        windows = (slice(None), slice(1 - up, 1 - up + height), None, slice(1 - left, 1 - left + width), None)
        here = ROW * (parity[:, None, None, None] + STRIDE * up) + parity[:, None] + STRIDE * left
        total = total + jnp.where(place[windows] == here, g[windows], 0)
    gradient = total.reshape(len(g), STRIDE * height, STRIDE * width, g.shape[-1])
    return (gradient[:, : size[0], : size[1]],)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _windows(x_BHWC: Array, ceil: bool) -> dict[tuple[int, int], Array]:
    """By (row, column), in row-major order: that element of each window, [B, P, Q, C]."""
    P, Q = (_window_count(n, ceil) for n in x_BHWC.shape[1:3])
    pads = [padding(n, ceil) for n in x_BHWC.shape[1:3]]
    x = jnp.pad(x_BHWC, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    return {
        (row, column): x[:, row : row + STRIDE * P : STRIDE, column : column + STRIDE * Q : STRIDE]
        for row, column in itertools.product(range(WINDOW), repeat=2)
    }
