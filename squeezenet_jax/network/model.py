"""SqueezeNet (arXiv 1602.07360) as flax linen modules: the mathematics, the numbers being in `architecture.py`.

    Stem        max-pool relu(W x + b)
    FireBlock   s = relu(W_s x + b_s);  y = [relu(W_1 s + b_1), relu(W_3 * s + b_3)]
                with a bypass: y + x, or y + relu(W_b x + b_b)
    FireGroup   fire blocks, then one (delayed) max-pool
    Learner     fire groups, dropout
    Classifier  conv10 to K maps, relu, mean over H and W: the logits (softmax belongs to the loss)

The table may have another activation in place of relu everywhere, none behind the squeeze layers, and a norm behind
every convolution but conv10: g (W x - m) / sqrt(v + 1e-5) + b, where g is a parameter, "scale". Mean m and variance v
are of a channel over the batch ("batch"; running averages of them, the collection "batch_stats", in an evaluation), or
of a group of channels of one example ("group").

Parameters carry the paper's names without the modules' nesting: conv1, fire2/squeeze1x1, fire2/expand3x3, fire2/bypass,
..., conv10; `trace.py` derives the same names from the table. Letters: B batch, H, W, C, K classes. What is between
fire blocks may be several arrays (`lowering.Features`). Read next: `objective.py`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, assert_never

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from squeezenet_jax.network import lowering
from squeezenet_jax.network.architecture import NORM_EPSILON, Architecture, FireSpec, Norm, group_size
from squeezenet_jax.network.lowering import Features
from squeezenet_jax.network.trace import trace
from squeezenet_jax.system.errors import check_choice

KERNEL_INITS = ("glorot_uniform", "lecun_uniform", "he_uniform", "orthogonal")  # linen's names
CONV10_INITS = ("same", "normal_0.01")
MOMENTUM = 0.9  # of the running averages, PyTorch's: runs of a few hundred steps have to fill them


class Conv(nn.Module):
    """W * x + b or norm(W * x) + b, [B, H, W, C] -> [B, P, Q, features]; parameters like those of linen's."""

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: str | int = "VALID"
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    norm: Norm = "none"

    @nn.compact
    def __call__(
        self,
        x: Features,
        mask_B: jax.Array | None = None,
        *,
        pool: Callable[[jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """norm(W * x) + b; or, without a norm, pool(W * x) + b. `mask_B`: see `SqueezeNet`."""
        shape = (*self.kernel_size, lowering.num_channels(x), self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        norm: Callable[[jax.Array], jax.Array] | None = None
        if self.norm != "none":
            scale = self.param("scale", nn.initializers.ones, (self.features,))
            norm = functools.partial(_group_norm, scale_C=scale, bias_C=bias)
        if self.norm == "batch":
            mean = self.variable("batch_stats", "mean", jnp.zeros, (self.features,))
            var = self.variable("batch_stats", "var", jnp.ones, (self.features,))
            norm = functools.partial(_batch_norm, mask_B, mean, var, scale_C=scale, bias_C=bias)
            if mask_B is None:
                factor = scale * (var.value + NORM_EPSILON) ** -0.5
                norm = functools.partial(_affine, mean_C=mean.value, factor_C=factor, bias_C=bias)
                if self.dtype == jnp.float32:  # part of the convolution; in half precision, rounding would show
                    kernel, bias, norm = kernel * factor, bias - mean.value * factor, None
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        y = lowering.conv(x, kernel, None if pool or norm else bias, strides=self.strides, padding=self.padding)
        if self.has_variable("perturbations", "output"):  # 0, for the gradient of the loss with respect to the output
            y = y + self.get_variable("perturbations", "output")
        self.sow("intermediates", "output", y)
        assert not (norm and pool), "a pool does not go before a norm"
        if norm:
            return norm(y).astype(self.dtype)
        return lowering.add_bias(pool(y), bias) if pool else y


class FireBlock(nn.Module):
    """One fire module, [B, H, W, C] -> [B, H, W, e1x1 + e3x3] (paper Fig. 1; bypass Fig. 2), or its max-pool.

    The bypass is added after the expand layers' activations and nothing but the pool follows the sum.
    """

    spec: FireSpec
    arch: Architecture
    conv: Callable[..., Conv]  # with the network's dtype and initialiser

    @nn.compact
    def __call__(self, x: Features, mask_B: jax.Array | None = None, *, pooled: bool = False) -> Features:
        spec, pool = self.spec, _max_pool(self.arch) if pooled else None
        # A maximum does not go through a bypass's sum.
        early, late = (pool, None) if spec.bypass == "none" and lowering.pools_early(self.arch) else (None, pool)
        activate = functools.partial(lowering.activate, name=self.arch.activation)
        s = self.conv(spec.squeeze, (1, 1), name="squeeze1x1")(x, mask_B)
        s = activate(s) if self.arch.squeeze_activation else s
        expand1x1 = activate(self.conv(spec.expand1x1, (1, 1), name="expand1x1")(s, mask_B, pool=early))
        expand3x3 = activate(self.conv(spec.expand3x3, (3, 3), padding="SAME", name="expand3x3")(s, mask_B, pool=early))
        y = lowering.concatenate(expand1x1, expand3x3)
        match spec.bypass:
            case "none":
                pass
            case "identity":
                y = lowering.add(y, x)
            case "conv":
                projected = self.conv(spec.features, (1, 1), name="bypass")(x, mask_B)
                y = lowering.add(y, activate(projected) if self.arch.bypass_relu else projected)
            case other:
                assert_never(other)
        return jax.tree.map(late, y) if late else y


class FireGroup(nn.Module):
    """Fire blocks numbered from `first`, then, if `pooled`, a max-pool."""

    specs: tuple[FireSpec, ...]
    first: int
    arch: Architecture
    conv: Callable[..., Conv]

    @nn.compact
    def __call__(self, x: Features, mask_B: jax.Array | None, *, pooled: bool) -> Features:
        last = self.first + len(self.specs) - 1
        for number, spec in enumerate(self.specs, start=self.first):
            x = FireBlock(spec, self.arch, self.conv, name=f"fire{number}")(x, mask_B, pooled=pooled and number == last)
        return x


class Stem(nn.Module):
    """conv1, its activation and the first max-pool if there is one, [B, H, W, C] -> [B, H', W', features]."""

    arch: Architecture
    conv: Callable[..., Conv]

    @nn.compact
    def __call__(self, x: jax.Array, mask_B: jax.Array | None) -> jax.Array:
        spec = self.arch.stem
        pool = _max_pool(self.arch) if spec.pool else None
        early, late = (pool, None) if lowering.pools_early(self.arch) else (None, pool)
        kernel, strides = (spec.kernel, spec.kernel), (spec.stride, spec.stride)
        conv1 = self.conv(spec.features, kernel, strides=strides, padding=spec.padding, name="conv1")
        y = lowering.activate(conv1(x, mask_B, pool=early), self.arch.activation)
        return late(y) if late else y


class Learner(nn.Module):
    """All fire groups, and the dropout behind the last one (paper Sec. 3.3.1)."""

    arch: Architecture
    conv: Callable[..., Conv]

    @nn.compact
    def __call__(self, x: Features, dropout_key_B: jax.Array | None, mask_B: jax.Array | None) -> Features:
        first = 2
        for index, specs in enumerate(self.arch.groups):
            group = FireGroup(specs, first, self.arch, self.conv, name=f"group{index}")
            nn.share_scope(self, group)
            x = group(x, mask_B, pooled=index < len(self.arch.groups) - 1)
            first += len(specs)
        return x if dropout_key_B is None else _dropout(lowering.join(x), dropout_key_B, self.arch.dropout)


class Classifier(nn.Module):
    """One map per class, its activation, and its mean, [B, H, W, C] -> [B, K]."""

    num_classes: int
    arch: Architecture
    conv: Callable[..., Conv]

    @nn.compact
    def __call__(self, x: Features) -> jax.Array:
        x = self.conv(self.num_classes, (1, 1), padding=self.arch.conv10_padding, name="conv10")(x)
        x = lowering.activate(x, self.arch.activation) if self.arch.conv10_relu else x
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


class SqueezeNet(nn.Module):
    """The network of a table: normalised images, float [B, H, W, C] -> logits, float32 [B, K].

    Arguments:
      arch: the table, from `architecture.build`.
      num_classes: K.
      kernel_init: one of `KERNEL_INITS`, by default the model card's; biases start at 0.
      conv10_init: "same" as the rest, or "normal_0.01" (Caffe's and torchvision's choice).
      dtype: of the activations; parameters are float32.

    >>> from squeezenet_jax.network.architecture import build
    >>> model = SqueezeNet(build("v1.1"), num_classes=10)
    >>> image_BHWC = jnp.zeros((2, 64, 64, 3))
    >>> variables = jax.jit(model.init)(jax.random.key(0), image_BHWC)
    >>> jax.jit(model.apply)(variables, image_BHWC).shape
    (2, 10)
    """

    arch: Architecture
    num_classes: int
    kernel_init: str = "glorot_uniform"
    conv10_init: str = "same"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, image_BHWC: jax.Array, dropout_key_B: jax.Array | None = None, mask_B: jax.Array | None = None
    ) -> jax.Array:
        """The logits; in training with a key for each example's dropout.

        Batch normalisation in training takes the statistics of the examples whose `mask_B` is 1 (all, without a mask)
        and updates `batch_stats`, which has to be mutable: `apply(..., mutable=["batch_stats"])`.

        Raises `UserError` for an unknown initialiser, and for images that are too small for the table.
        """
        trace(self.arch, image_size=min(image_BHWC.shape[1:3]), num_classes=self.num_classes)  # refuses small images
        if mask_B is None and dropout_key_B is not None:
            mask_B = jnp.ones(len(image_BHWC))
        initializer = getattr(nn.initializers, check_choice("kernel_init", self.kernel_init, KERNEL_INITS))()
        conv = conv10 = functools.partial(Conv, kernel_init=initializer, dtype=jnp.dtype(self.dtype))
        if check_choice("conv10_init", self.conv10_init, CONV10_INITS) == "normal_0.01":
            conv10 = functools.partial(conv, kernel_init=nn.initializers.normal(0.01))
        conv = functools.partial(conv, norm=self.arch.norm)
        stem = Stem(self.arch, conv, name="stem")
        learner = Learner(self.arch, conv, name="learner")
        classifier = Classifier(self.num_classes, self.arch, conv10, name="classifier")
        for part in (stem, learner, classifier):
            nn.share_scope(self, part)
        return classifier(learner(stem(image_BHWC.astype(self.dtype), mask_B), dropout_key_B, mask_B))


def _max_pool(arch: Architecture) -> Callable[[jax.Array], jax.Array]:
    return functools.partial(lowering.max_pool, ceil=arch.pool_ceil)


def _batch_norm(
    mask_B: Any, running_mean: Any, running_var: Any, x_BHWC: jax.Array, *, scale_C: jax.Array, bias_C: jax.Array
) -> jax.Array:
    """Batch normalisation by the examples of all devices whose mask is 1; moves the running averages."""
    y, mean, var = lowering.batch_norm(x_BHWC.astype(jnp.float32), mask_B, scale_C, bias_C)
    for average, now in ((running_mean, mean), (running_var, var)):
        moved = MOMENTUM * average.value + (1 - MOMENTUM) * now
        average.value = jnp.where(jnp.sum(mask_B) > 0, moved, average.value)
    return y


def _affine(x_BHWC: jax.Array, *, mean_C: jax.Array, factor_C: jax.Array, bias_C: jax.Array) -> jax.Array:
    return (x_BHWC.astype(jnp.float32) - mean_C) * factor_C + bias_C


def _group_norm(x_BHWC: jax.Array, *, scale_C: jax.Array, bias_C: jax.Array) -> jax.Array:
    """Group normalisation, by groups of neighbouring channels.

    The mean over a group is two convolutions with constant kernels, C to G to C channels: LiteRT cannot reshape batches
    of any size.
    """
    x, C = x_BHWC.astype(jnp.float32), x_BHWC.shape[-1]
    is_member_CG = (np.arange(C)[:, None] // group_size(C) == np.arange(C // group_size(C))).astype(np.float32)

    def mean_of_group(x_BHWC: jax.Array) -> jax.Array:
        mean = jnp.mean(x_BHWC, (1, 2), keepdims=True)
        for kernel in (is_member_CG / group_size(C), is_member_CG.T):
            layout = ("NHWC", "HWIO", "NHWC")
            mean = jax.lax.conv_general_dilated(
                mean, kernel[None, None], (1, 1), "VALID", dimension_numbers=layout, precision="highest"
            )
        return mean

    mean = mean_of_group(x)
    var = mean_of_group((x - mean) ** 2)
    return (x - mean) * (scale_C * jax.lax.rsqrt(var + NORM_EPSILON)) + bias_C


def _dropout(x: jax.Array, key_B: jax.Array, rate: float) -> jax.Array:
    """Sets a random share `rate` of x to 0 and scales the rest up by 1 / (1 - rate).

    A mask follows from its example's key alone, so it is the same in whatever batch the example is computed; linen's
    Dropout draws one mask over the batch.
    """
    shape = (math.prod(x.shape[1:]),)  # the same bits as of three dimensions, in a third of the time to compile
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(key_B)
    return jnp.where(kept.reshape(x.shape), x / (1 - rate), 0)
