"""How the network's operations are computed: plain lax on an accelerator, faster forms of the same on a CPU.

Things that XLA's CPU backend is slow at, and what stands in their place; the rest is lax's, also on a CPU.

    max-pooling's gradient      select-and-scatter, element by element   selects by the place of the maximum
    a ReLU's gradient           reads and keeps its operand              reads its result, which is kept anyway
    channels side by side       copies, at a tenth of memory's speed     they stay apart: W y = W_1 y_1 + W_2 y_2
    a 1x1 kernel's gradient     transposes both operands                 matrix products, the narrow operand first
    other convolutions' grad.   in a loop: scalar code                   operands transposed as Eigen wants them
    a bias's gradient           a reduction in two passes                a product with ones
    batch normalisation         five such reductions                     four products
    a 3x3 stem with stride 2    slow for so few channels                 one product with all windows
    large 3x3 convolutions      all the products of the definition       half of them, by Winograd's algorithm
    a large batch               leaves the caches, and takes new memory  one part of it after another

Together with `compiler_options` they make a training step two to three times as fast as plain lax's;
benchmarks/LOG.md has the figures, and what else was tried. On a CPU, max-pools, ReLUs, convolutions and batch norms
have only reverse-mode derivatives; for `jax.jvp` or `jax.hessian`, trace inside `portable()`.

Dimension letters: B batch, H, W input height and width, P, Q the output's, C channels, O output channels, N = B P Q.
Read next: `model.py`.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from squeezenet_jax.network.architecture import POOL_STRIDE, POOL_WINDOW, Activation, Architecture
from squeezenet_jax.network.lowering import activation, convolution, normalization, plain, pooling, products

# [B, H, W, C], or arrays whose channels, one after another, are those of [B, H, W, C].
Features = Array | tuple[Array, ...]

# A CPU's microbatch: at most so many images, of all together so many pixels (8 of 224 x 224). Best on two cores with 32
# MB of last-level cache.
MICROBATCH_IMAGES, MICROBATCH_PIXELS = 32, 1 << 19
# Winograd's algorithm, which takes seconds longer to compile, is for 3x3 convolutions of so many MACs. In training all
# of 8 images of 224 px have them, none of the main job's.
WINOGRAD_MACS = {"training": 90_000_000, "inference": 0, "short inference": math.inf}


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


def conv(
    x: Features, kernel_HWCO: Array, bias_O: Array | None, *, strides: tuple[int, int], padding: str | int
) -> Array:
    """Cross-correlation, plus the bias if there is one, -> [B, P, Q, O].

    `padding` is lax's name, or so many zeros on every side.
    """
    if _on_cpu() and kernel_HWCO.shape[:2] == strides == (1, 1):
        if isinstance(padding, int) and padding:
            border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
            x = jax.tree.map(lambda part: jnp.pad(part, border), x)
        return add_bias(products.pointwise_conv(jax.tree.leaves(x), kernel_HWCO[0, 0]), bias_O)
    x = join(x)
    if isinstance(padding, str):
        pads = tuple(lax.padtype_to_pads(x.shape[1:3], kernel_HWCO.shape[:2], strides, padding))
    else:
        pads = 2 * ((padding, padding),)
    if not _on_cpu():
        return add_bias(plain.lax_conv(x, kernel_HWCO, strides, pads), bias_O)
    return convolution.conv(x, kernel_HWCO, bias_O, strides, pads, winograd_macs=WINOGRAD_MACS[_form.get()])


def add_bias(x_BPQO: Array, bias_O: Array | None) -> Array:
    """x + b for each output channel, or x."""
    if _on_cpu():
        return products.add_bias(x_BPQO, bias_O)
    return x_BPQO if bias_O is None else x_BPQO + bias_O


def activate(x: Array, name: Activation) -> Array:
    """The activation of that name; relu is max(x, 0), with gradient 0 at 0."""
    functions = activation.CPU if _on_cpu() else activation.PLAIN
    return functions[name](x)


def batch_norm(x_BHWC: Array, mask_B: Array, scale_C: Array, bias_C: Array) -> tuple[Array, Array, Array]:
    """g (x - m) / sqrt(v + 1e-5) + b, m and v, of the examples whose mask is 1; those of the others are b.

    m [C] and v [C] are mean and variance over these examples and their positions, 0 where there is no example; a
    gradient takes the returned ones for constants.
    """
    form = normalization.batch_norm if _on_cpu() else normalization.lax_batch_norm
    y, mean, var = form(x_BHWC, mask_B.astype(x_BHWC.dtype), scale_C, bias_C)
    return y, lax.stop_gradient(mean), lax.stop_gradient(var)


def max_pool(x_BHWC: Array, *, ceil: bool) -> Array:
    """3x3 max-pool with stride 2 -> [B, P, Q, C], where P = (H - 3) / 2 + 1 is rounded down or, if `ceil`, up.

    Rounding up pads with -inf at the bottom and right (Caffe's way, torch's `ceil_mode`). Where a window has several
    equal maxima (behind a ReLU: the zeros), the first in row-major order gets the whole gradient, as from lax; half to
    each, as `jnp.maximum` has it, would be a subgradient too, but another training run. NaN gives NaN, and its gradient
    goes to some element of the window.
    """
    if _on_cpu():
        return pooling.max_pool(x_BHWC, ceil, x_BHWC.shape[1:3])
    pads = [pooling.padding(n, ceil) for n in x_BHWC.shape[1:3]]
    window, strides = (1, POOL_WINDOW, POOL_WINDOW, 1), (1, POOL_STRIDE, POOL_STRIDE, 1)
    y: Array = lax.reduce_window(x_BHWC, -jnp.inf, lax.max, window, strides, [(0, 0), *pads, (0, 0)])
    return y


def pools_early(arch: Architecture) -> bool:
    """Whether max-pool f(W x + b) should be computed as f(max-pool(W x) + b).

    The same, where adding one number and the activation f keep the order; on a CPU faster, on a quarter of the
    elements. Elsewhere bias and activation are part of the convolution.
    """
    return arch.activations_monotone and _on_cpu()


def num_microbatches(arch: Architecture, batch_size: int, image_size: int, *, training: bool) -> int:
    """Into how many equal parts, computed one after another, a CPU should cut a batch; 1 off the CPU.

    What the layers of many images need leaves the caches, and is new memory for every step; the operations of few
    images are so short that the cores wait for each other. A network whose examples depend on each other in training
    gives something else for parts of a batch, so there it is 1, too.
    """
    if not _on_cpu() or (training and not arch.examples_independent):
        return 1
    most = min(MICROBATCH_IMAGES, MICROBATCH_PIXELS // image_size**2)
    size = max((size for size in range(1, most + 1) if batch_size % size == 0), default=1)
    return batch_size // size if size > most // 2 else 1


def compiler_options() -> dict[str, str | bool]:
    """For `jax.jit(step, compiler_options=...)`; empty off the CPU.

    By default XLA's CPU backend gives convolutions and products to YNNPACK, whose 3x3 ones are slower than its own,
    Eigen's. Without it a step of the main job is 1.1 times as fast; at 224 px, where most are products, hardly (1.02).
    """
    return {"xla_cpu_experimental_ynn_fusion_type": ""} if _on_cpu() else {}


Form = Literal["training", "inference", "short inference", "portable"]
_form = contextvars.ContextVar[Form]("form", default="training")


def inference(*, many_images: bool) -> contextlib.AbstractContextManager[None]:
    """What is traced inside is for inference: on a CPU either as fast as can be, or compiled as soon as can be."""
    return _traced_as("inference" if many_images else "short inference")


def portable() -> contextlib.AbstractContextManager[None]:
    """What is traced inside is plain lax on a CPU too: for a program that other devices or converters will read."""
    return _traced_as("portable")


@contextlib.contextmanager
def _traced_as(form: Form) -> Iterator[None]:
    """For a function that is new: of one that jax has traced before it may take that trace, in whatever form."""
    token = _form.set(form)
    try:
        yield
    finally:
        _form.reset(token)


def _on_cpu() -> bool:
    """Asked while tracing. Programs for other devices or converters are traced inside `portable()`."""
    return _form.get() != "portable" and jax.default_backend() == "cpu"
