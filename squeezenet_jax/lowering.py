"""How the network's operations are computed: plain lax on an accelerator, faster forms of the same on a CPU.

Four things that XLA's CPU backend is slow at, and what stands in their place; the rest is lax's, also on a CPU.

    max-pooling's gradient      select-and-scatter, element by element   selects between shifted arrays
    channels side by side       copies, at a tenth of memory's speed     they stay apart: W y = W_1 y_1 + W_2 y_2
    a 1x1 kernel's gradient     transposes both operands                 matrix products all the way
    a bias's gradient           a reduction in two passes                a product with ones

Together with `compiler_options` they make a training step 1.6 to 2 times as fast as plain lax's. What else was tried is
in benchmarks/README.md.

Dimension letters: B batch, H, W input height and width, P, Q the output's, C channels, O output channels, N = B P Q.
Read next: `model.py`.
"""

import contextlib
import contextvars
import functools
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import Array, lax

# [B, H, W, C], or arrays whose channels, one after another, are those of [B, H, W, C].
Features = Array | tuple[Array, ...]

WINDOW, STRIDE = 3, 2


def concatenate(*parts_BHWC: Array) -> Features:
    """The arrays with their channels one after another; on a CPU they stay apart."""
    return parts_BHWC if _on_cpu() else join(parts_BHWC)


def join(x: Features) -> Array:
    """The same as one array [B, H, W, C]."""
    return jnp.concatenate(x, axis=-1) if isinstance(x, tuple) else x


def num_channels(x: Features) -> int:
    return sum(part.shape[-1] for part in jax.tree.leaves(x))


def add(x: Features, y: Features) -> Features:
    """x + y; part by part where they have the same parts."""
    if jax.tree.map(jnp.shape, x) == jax.tree.map(jnp.shape, y):
        total: Features = jax.tree.map(jnp.add, x, y)
        return total
    return join(x) + join(y)


def conv(x: Features, kernel_HWCO: Array, *, strides: tuple[int, int], padding: str | int) -> Array:
    """Cross-correlation -> [B, P, Q, O]; `padding` is lax's name, or so many zeros on every side."""
    if _on_cpu() and kernel_HWCO.shape[:2] == strides == (1, 1) and padding in ("VALID", "SAME"):
        return _pointwise_conv(x, kernel_HWCO[0, 0])
    pads = padding if isinstance(padding, str) else 2 * ((padding, padding),)
    y: Array = lax.conv_general_dilated(join(x), kernel_HWCO, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y


def add_bias(x_BPQO: Array, bias_O: Array) -> Array:
    """x + b, for each output channel."""
    if not _on_cpu():
        return x_BPQO + bias_O
    x_NO = x_BPQO.reshape(-1, x_BPQO.shape[-1])
    return (x_NO + jnp.ones((len(x_NO), 1), x_NO.dtype) @ bias_O[None]).reshape(x_BPQO.shape)


def max_pool(x_BHWC: Array, *, ceil: bool) -> Array:
    """3x3 max-pool with stride 2 -> [B, P, Q, C], where P = (H - 3) / 2 + 1 is rounded down or, if `ceil`, up.

    Rounding up pads with -inf at the bottom and right (Caffe's way, torch's `ceil_mode`). Where a window has several
    equal maxima (behind a ReLU: the zeros), the first in row-major order gets the whole gradient, on every device; half
    to each, as `jnp.maximum` has it, would be a subgradient too, but another training run.
    """
    if _on_cpu():
        # The first maximum of each row, then of the rows: the first in row-major order.
        # 2 to 3 times as fast as lax's forward, 5 to 14 times with the gradient.
        return _max_pool_axis(_max_pool_axis(x_BHWC, axis=2, ceil=ceil), axis=1, ceil=ceil)
    pads = [(0, max(0, STRIDE * _window_count(n, ceil) + 1 - n)) for n in x_BHWC.shape[1:3]]
    window, strides = (1, WINDOW, WINDOW, 1), (1, STRIDE, STRIDE, 1)
    y: Array = lax.reduce_window(x_BHWC, -jnp.inf, lax.max, window, strides, [(0, 0), *pads, (0, 0)])
    return y


def compiler_options() -> dict[str, str | bool]:
    """For `jax.jit(step, compiler_options=...)`; empty off the CPU.

    By default XLA's CPU backend gives convolutions to YNNPACK, whose 3x3 ones are slower than its own, Eigen's: at 224
    px a step without YNNPACK is about 1.2 times as fast, on small images the same (0.95 to 1.1).
    """
    return {"xla_cpu_experimental_ynn_fusion_type": ""} if _on_cpu() else {}


_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """What is traced inside is plain lax on a CPU too: for a program that other devices or converters will read."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def _on_cpu() -> bool:
    """Asked while tracing. Either form is right on any device, so a program moved to another one only loses speed."""
    return not _portable.get() and jax.default_backend() == "cpu"


def _pointwise_conv(x: Features, kernel_CO: Array) -> Array:
    parts = jax.tree.leaves(x)
    ends = itertools.accumulate(part.shape[-1] for part in parts)
    kernels = jnp.split(kernel_CO, list(ends)[:-1])
    # As matrices: the gradient of a product over three dimensions would transpose them.
    products = (part.reshape(-1, part.shape[-1]) @ kernel for part, kernel in zip(parts, kernels, strict=True))
    y_NO: Array = functools.reduce(jnp.add, products)
    return y_NO.reshape(*parts[0].shape[:-1], -1)


def _window_count(size: int, ceil: bool) -> int:
    steps = (size - WINDOW) / STRIDE
    return max(0, (math.ceil(steps) if ceil else math.floor(steps)) + 1)


def _max_pool_axis(x: Array, *, axis: int, ceil: bool) -> Array:
    """y_i = max(x_2i, x_2i+1, x_2i+2) along one axis.

    The shifts are halves of a reshape to pairs, whose gradient is an interleaving. Strided slices would say the same,
    but their gradient pads between the elements, and makes the whole step 1.1 to 1.25 times as slow.
    """
    n = _window_count(x.shape[axis], ceil)

    def evens_and_odds(start: int) -> list[Array]:
        """Of the 2n elements from `start`."""
        pairs = lax.slice_in_dim(x, start, start + 2 * n, axis=axis)
        pairs = pairs.reshape(*x.shape[:axis], n, 2, *x.shape[axis + 1 :])
        return [half.squeeze(axis + 1) for half in lax.split(pairs, (1, 1), axis + 1)]

    if missing := max(0, 2 * n + 1 - x.shape[axis]):
        fill = [(0, missing if d == axis else 0, 0) for d in range(x.ndim)]
        x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), fill)
    first, second = evens_and_odds(0)
    _, third = evens_and_odds(1)
    return _maximum(_maximum(first, second), third)


def _maximum(a: Array, b: Array) -> Array:
    """`jnp.maximum`, NaN included, except that where the two are equal the whole gradient goes to `a`."""
    y: Array = jnp.where((a >= b) | (a != a), a, b)
    return y
