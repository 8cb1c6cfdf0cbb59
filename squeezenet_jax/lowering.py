"""How the network's operations are computed: plain lax on an accelerator, faster forms of the same on a CPU.

Six things that XLA's CPU backend is slow at, and what stands in their place; the rest is lax's, also on a CPU.

    max-pooling's gradient      select-and-scatter, element by element   selects by the place of the maximum
    channels side by side       copies, at a tenth of memory's speed     they stay apart: W y = W_1 y_1 + W_2 y_2
    a 1x1 kernel's gradient     transposes both operands                 matrix products, the narrow operand first
    other convolutions' grad.   in a loop: scalar code                   operands transposed as Eigen wants them
    a bias's gradient           a reduction in two passes                a product with ones
    a large batch               leaves the caches, and takes new memory  one part of it after another

Together with `compiler_options` they make a training step two to three times as fast as plain lax's;
benchmarks/README.md has the figures, and what else was tried. On a CPU, max-pools and convolutions have only
reverse-mode derivatives; for `jax.jvp` or `jax.hessian`, trace inside `portable()`.

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
# (before the first, behind the last) row, and the same of columns.
Pads = tuple[tuple[int, int], ...]

WINDOW, STRIDE = 3, 2
# A CPU's microbatch: at most so many images, of all together so many pixels (8 of 224 x 224). Best on two cores with 32
# MB of last-level cache.
MICROBATCH_IMAGES, MICROBATCH_PIXELS = 32, 1 << 19
# A place in a pool's window as one number: ROW * row + column, each from 0 to 2. A row or column 3 is outside of it.
ROW, NOWHERE = 4, 255


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
    if _on_cpu() and kernel_HWCO.shape[:2] == strides == (1, 1):
        if isinstance(padding, int) and padding:
            border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
            x = jax.tree.map(lambda part: jnp.pad(part, border), x)
        return _pointwise_conv(x, kernel_HWCO[0, 0])
    x = join(x)
    if isinstance(padding, str):
        pads = tuple(lax.padtype_to_pads(x.shape[1:3], kernel_HWCO.shape[:2], strides, padding))
    else:
        pads = 2 * ((padding, padding),)
    convolve = _conv if _on_cpu() else _lax_conv
    return convolve(x, kernel_HWCO, strides, pads)


def add_bias(x_BPQO: Array, bias_O: Array) -> Array:
    """x + b, for each output channel."""
    if not _on_cpu():
        return x_BPQO + bias_O
    x_NO = x_BPQO.reshape(-1, x_BPQO.shape[-1])
    return (x_NO + jnp.ones((len(x_NO), 1), x_NO.dtype) @ bias_O[None]).reshape(x_BPQO.shape)


def max_pool(x_BHWC: Array, *, ceil: bool) -> Array:
    """3x3 max-pool with stride 2 -> [B, P, Q, C], where P = (H - 3) / 2 + 1 is rounded down or, if `ceil`, up.

    Rounding up pads with -inf at the bottom and right (Caffe's way, torch's `ceil_mode`). Where a window has several
    equal maxima (behind a ReLU: the zeros), the first in row-major order gets the whole gradient, as from lax; half to
    each, as `jnp.maximum` has it, would be a subgradient too, but another training run. NaN gives NaN, and its gradient
    goes to some element of the window.
    """
    if _on_cpu():
        return _max_pool(x_BHWC, ceil, x_BHWC.shape[1:3])
    pads = [_padding(n, ceil) for n in x_BHWC.shape[1:3]]
    window, strides = (1, WINDOW, WINDOW, 1), (1, STRIDE, STRIDE, 1)
    y: Array = lax.reduce_window(x_BHWC, -jnp.inf, lax.max, window, strides, [(0, 0), *pads, (0, 0)])
    return y


def num_microbatches(batch_size: int, image_size: int) -> int:
    """Into how many equal parts, computed one after another, a CPU should cut a batch; 1 off the CPU.

    What the layers of many images need leaves the caches, and is new memory for every step; the operations of few
    images are so short that the cores wait for each other.
    """
    if not _on_cpu():
        return 1
    most = min(MICROBATCH_IMAGES, MICROBATCH_PIXELS // image_size**2)
    size = max((size for size in range(1, most + 1) if batch_size % size == 0), default=1)
    return batch_size // size if size > most // 2 else 1


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


def _lax_conv(
    x_BHWC: Array,
    kernel_HWCO: Array,
    strides: tuple[int, int],
    pads: Pads,
    lhs_dilation: tuple[int, int] = (1, 1),
    rhs_dilation: tuple[int, int] = (1, 1),
) -> Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    y: Array = lax.conv_general_dilated(
        x_BHWC, kernel_HWCO, strides, pads, lhs_dilation, rhs_dilation, dimension_numbers=numbers
    )
    return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x_BHWC: Array, kernel_HWCO: Array, strides: tuple[int, int], pads: Pads) -> Array:
    return _lax_conv(x_BHWC, kernel_HWCO, strides, pads)


def _conv_forward(
    x_BHWC: Array, kernel_HWCO: Array, strides: tuple[int, int], pads: Pads
) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x_BHWC, kernel_HWCO, strides, pads), (x_BHWC, kernel_HWCO)


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
    gradient_x = _lax_conv(g_BPQO, turned_HWOC, (1, 1), tuple(pads_x), lhs_dilation=strides)
    x_CHWB, g_PQBO = x_BHWC.transpose(3, 1, 2, 0), g_BPQO.transpose(1, 2, 0, 3)
    gradient_CHWO = _lax_conv(x_CHWB, g_PQBO, (1, 1), tuple(pads_kernel), rhs_dilation=strides)
    return gradient_x, gradient_CHWO.transpose(1, 2, 0, 3)


_conv.defvjp(_conv_forward, _conv_backward)


def _pointwise_conv(x: Features, kernel_CO: Array) -> Array:
    parts = jax.tree.leaves(x)
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


def _window_count(size: int, ceil: bool) -> int:
    steps = (size - WINDOW) / STRIDE
    return max(0, (math.ceil(steps) if ceil else math.floor(steps)) + 1)


def _padding(size: int, ceil: bool) -> tuple[int, int]:
    """What the last of a pool's windows needs before the first and behind the last of `size` elements."""
    return 0, max(0, STRIDE * _window_count(size, ceil) + 1 - size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(x_BHWC: Array, ceil: bool, size: tuple[int, int]) -> Array:
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
    return _max_pool(x_BHWC, ceil, size), place


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


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _windows(x_BHWC: Array, ceil: bool) -> dict[tuple[int, int], Array]:
    """By (row, column), in row-major order: that element of each window, [B, P, Q, C]."""
    P, Q = (_window_count(n, ceil) for n in x_BHWC.shape[1:3])
    pads = [_padding(n, ceil) for n in x_BHWC.shape[1:3]]
    x = jnp.pad(x_BHWC, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    return {
        (row, column): x[:, row : row + STRIDE * P : STRIDE, column : column + STRIDE * Q : STRIDE]
        for row, column in itertools.product(range(WINDOW), repeat=2)
    }
