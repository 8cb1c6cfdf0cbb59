"""SqueezeNet as tables: what differs between its variants. Standard library only.

A table (`Architecture`) says how many filters each layer has and where the bypasses are; `model.py` says how a layer is
computed. Variants are pure functions from table to table, so they combine: any version, width, metaparameters, bypass
and geometry. `trace.py` turns a table into one row for each layer, with its shapes, parameters and MACs.

Read next: `model.py`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Literal, cast, get_args

from squeezenet_jax.system.errors import UserError, check_choice

Bypass = Literal["none", "identity", "conv"]
Activation = Literal["relu", "elu", "leaky_relu", "swish"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
Norm = Literal["none", "batch", "group"]
NORMS: tuple[Norm, ...] = get_args(Norm)
NORM_EPSILON = 1e-5  # added to a variance
MONOTONE = {"relu", "elu", "leaky_relu"}  # activations that keep the order of their inputs
POOL_WINDOW, POOL_STRIDE = 3, 2  # px, of every max-pool of every version


@dataclasses.dataclass(frozen=True)
class FireSpec:
    """One fire module (paper Sec. 3.2): squeeze to s1x1 filters, expand to e1x1 + e3x3."""

    squeeze: int
    expand1x1: int
    expand3x3: int
    bypass: Bypass = "none"

    @property
    def features(self) -> int:
        return self.expand1x1 + self.expand3x3


@dataclasses.dataclass(frozen=True)
class StemSpec:
    """conv1 and, if `pool`, the max-pool behind it."""

    features: int
    kernel: int
    stride: int
    pool: bool = True
    padding: Literal["SAME", "VALID"] = "SAME"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A whole network up to the number of classes. A max-pool follows every group but the last.

    `build` makes them. The properties are what holds for some tables only: whoever relies on one asks for it.
    """

    stem: StemSpec
    groups: tuple[tuple[FireSpec, ...], ...]
    dropout: float = 0.5  # after the last fire
    conv10_relu: bool = True  # the activation between conv10 and the global average
    bypass_relu: bool = True  # the activation on a complex bypass's 1x1 convolution; the paper does not say
    activation: Activation = "relu"  # elu's scale is 1, leaky_relu's slope 0.01; swish is x sigmoid(x)
    squeeze_activation: bool = True  # the activation behind the squeeze layers
    norm: Norm = "none"  # between every convolution but conv10 and its bias
    pool_ceil: bool = False  # Caffe rounds the size of a pool's output up, Keras and flax down
    conv10_padding: int = 0
    caffe_conv10_padding: int = 0  # what `with_geometry(arch, "caffe")` sets conv10_padding to

    def fires(self) -> Iterator[tuple[int, FireSpec]]:
        """(number, spec) of every fire module; the paper numbers them from 2."""
        return enumerate(itertools.chain.from_iterable(self.groups), start=2)

    @property
    def examples_independent(self) -> bool:
        """Whether in training, too, an example's logits are the same in any batch."""
        return self.norm != "batch"

    @property
    def activations_monotone(self) -> bool:
        """Whether what follows a convolution keeps the order of its outputs, so that max f(x) = f(max x)."""
        return self.activation in MONOTONE and self.norm == "none"  # a norm's scale may be negative


def fire(squeeze: int, bypass: Bypass = "none") -> FireSpec:
    """The paper's own fire module: SR 0.125 and pct3x3 0.5, so each expand has four times the squeeze's filters."""
    return FireSpec(squeeze, 4 * squeeze, 4 * squeeze, bypass)


# arXiv 1602.07360v4, Table 1; the groups are the model card's.
V1_0 = Architecture(
    stem=StemSpec(features=96, kernel=7, stride=2),
    groups=(
        (fire(16), fire(16), fire(32)),
        (fire(32), fire(48), fire(48), fire(64)),
        (fire(64),),
    ),
    caffe_conv10_padding=1,  # an accident that its author calls benign (DeepScale/SqueezeNet#14, #27, #32)
)
# DeepScale/SqueezeNet, SqueezeNet_v1.1/train_val.prototxt: smaller stem, pools two fires earlier.
V1_1 = Architecture(
    stem=StemSpec(features=64, kernel=3, stride=2),
    groups=(
        (fire(16), fire(16)),
        (fire(32), fire(32)),
        (fire(48), fire(48), fire(64), fire(64)),
    ),
)

VERSIONS = {"v1.0": V1_0, "v1.1": V1_1}
STEMS = ("card", "small")
GEOMETRIES = ("same", "caffe", "torchvision")
# Around fires whose input has as many channels as their output, and around the others.
BYPASSES: dict[str, tuple[Bypass, Bypass]] = {
    "none": ("none", "none"),
    "simple": ("identity", "none"),
    "complex": ("identity", "conv"),
}


@dataclasses.dataclass(frozen=True)
class Metaparameters:
    """The paper's design space (Sec. 5.1), the defaults being SqueezeNet's.

    Fire i (from 0) has e_i = base_e + incr_e * floor(i / freq) expand filters, of which e3x3 = pct3x3 * e_i are 3x3
    and e1x1 = e_i - e3x3 are 1x1, and s1x1 = squeeze_ratio * e_i squeeze filters. The paper leaves rounding open; here
    s1x1 and e3x3 are rounded half up and no layer has less than one filter.
    """

    base_e: int = 128
    incr_e: int = 128
    freq: int = 2
    squeeze_ratio: float = 0.125
    pct3x3: float = 0.5

    def fire(self, i: int) -> FireSpec:
        e = self.base_e + self.incr_e * (i // self.freq)
        expand3x3 = min(_round(self.pct3x3 * e), e - 1)
        return FireSpec(_round(self.squeeze_ratio * e), e - expand3x3, expand3x3)


def with_metaparameters(arch: Architecture, meta: Metaparameters) -> Architecture:
    """The same stem and pool positions with the fires that the metaparameters give (paper Sec. 5).

    Bypasses are dropped. Raises `UserError` for a metaparameter out of its range.
    """
    for name, value, low, high in (
        ("base_e", meta.base_e, 2, math.inf),
        ("incr_e", meta.incr_e, 0, math.inf),
        ("freq", meta.freq, 1, math.inf),
        ("squeeze_ratio", meta.squeeze_ratio, 1e-9, math.inf),
        ("pct3x3", meta.pct3x3, 1e-9, 1 - 1e-9),
    ):
        if not low <= value <= high:
            bounds = f"at least {low:g}" if high == math.inf else "above 0 and below 1"
            raise UserError(f"{name}: {value} is not allowed; it must be {bounds}")
    number = itertools.count()
    return _map_fires(arch, lambda f: _with_filters(dataclasses.replace(f, bypass="none"), meta.fire(next(number))))


def widen(arch: Architecture, multiplier: float) -> Architecture:
    """Multiplies the filters of conv1 and of every fire, rounded half up and at least 1; conv10's inputs follow.

    The width multiplier is that of MobileNets (arXiv 1704.04861, Sec. 3.3). Raises `UserError` unless it is above 0.
    """
    if not 0 < multiplier < math.inf:
        raise UserError(f"width: {multiplier} is not allowed; it must be above 0")

    def scale(filters: int) -> int:
        return _round(multiplier * filters)

    def filters(f: FireSpec) -> FireSpec:
        return FireSpec(scale(f.squeeze), scale(f.expand1x1), scale(f.expand3x3))

    wide = _map_fires(arch, lambda f: _with_filters(f, filters(f)))
    stem = dataclasses.replace(arch.stem, features=scale(arch.stem.features))
    return dataclasses.replace(wide, stem=stem)


def with_stem(arch: Architecture, kind: str) -> Architecture:
    """`card`: the version's own stem, for 224 px. `small`: 3x3 stride 1 and no pool, for images of 8 to 64 px.

    Raises `UserError` for another kind. The small stem is this project's own.
    """
    if check_choice("stem", kind, STEMS) == "card":
        return arch
    return dataclasses.replace(arch, stem=StemSpec(arch.stem.features, kernel=3, stride=1, pool=False))


def with_geometry(arch: Architecture, geometry: str) -> Architecture:
    """Where the borders lie. `same`: the card's SAME-padded stem and floor pools.

    `caffe`: conv1 unpadded and pools rounded up, as in the published prototxt files, where v1.0's conv10 has padding 1.
    `torchvision`: that without conv10's padding. Raises `UserError` for another geometry.
    """
    if check_choice("geometry", geometry, GEOMETRIES) == "same":
        return arch
    return dataclasses.replace(
        arch,
        stem=dataclasses.replace(arch.stem, padding="VALID"),
        pool_ceil=True,
        conv10_padding=arch.caffe_conv10_padding if geometry == "caffe" else 0,
    )


def with_bypass(arch: Architecture, kind: str) -> Architecture:
    """The paper's bypass connections (Sec. 6), in place of those that the table has.

    `none`: none. `simple`: identity around each fire whose input has as many channels as its output (3, 5, 7, 9).
    `complex`: that, and a 1x1 convolution around each other fire (2, 4, 6, 8). Raises `UserError` for another kind.
    """
    same, changed = BYPASSES[check_choice("bypass", kind, BYPASSES)]
    channels = arch.stem.features

    def connect(f: FireSpec) -> FireSpec:
        nonlocal channels
        matches, channels = channels == f.features, f.features
        return dataclasses.replace(f, bypass=same if matches else changed)

    return _map_fires(arch, connect)


def build(
    version: str,
    *,
    stem: str = "card",
    geometry: str = "same",
    width: float = 1.0,
    bypass: str = "none",
    activation: str = "relu",
    squeeze_activation: bool = True,
    norm: str = "none",
    metaparameters: Metaparameters | None = None,
) -> Architecture:
    """A version's table with all of the changes above; bypass comes last, since it looks at channel counts.

    Arguments:
      version: "v1.0" (the paper's) or "v1.1" (DeepScale's, of 2.4 times fewer MACs at the same accuracy).
      stem: "card" or "small", see `with_stem`.
      geometry: "same", "caffe" or "torchvision", see `with_geometry`.
      width: multiplies the filters, see `widen`.
      bypass: "none", "simple" or "complex", see `with_bypass`.
      activation: behind every convolution: "relu", "elu", "leaky_relu" or "swish".
      squeeze_activation: whether the squeeze layers have one, too.
      norm: behind every convolution but conv10: "none", "batch" (arXiv 1502.03167) or "group" (arXiv 1803.08494).
      metaparameters: the paper's design space (Sec. 5.1); None leaves the version's fires, which are its defaults.

    Raises `UserError`, which names the argument, its value and what is allowed.

    >>> arch = build("v1.1", bypass="simple", width=0.5)
    >>> dict(arch.fires())[3]
    FireSpec(squeeze=8, expand1x1=32, expand3x3=32, bypass='identity')
    """
    arch = VERSIONS[check_choice("version", version, VERSIONS)]
    if metaparameters is not None:
        arch = with_metaparameters(arch, metaparameters)
    arch = dataclasses.replace(
        arch,
        activation=cast(Activation, check_choice("activation", activation, ACTIVATIONS)),
        squeeze_activation=squeeze_activation,
        norm=cast(Norm, check_choice("norm", norm, NORMS)),
    )
    return with_bypass(with_geometry(with_stem(widen(arch, width), stem), geometry), bypass)


def group_size(channels: int) -> int:
    """How many channels group normalisation takes together: 16 or, where that does not divide them, the next that does.

    16 channels a group are among the best that Wu & He tried (arXiv 1803.08494, Table 3); their default, 32 groups,
    would leave squeeze layers with single channels.
    """
    return next((size for size in range(16, channels) if channels % size == 0), channels)


def _map_fires(arch: Architecture, change: Callable[[FireSpec], FireSpec]) -> Architecture:
    groups = tuple(tuple(change(spec) for spec in group) for group in arch.groups)
    return dataclasses.replace(arch, groups=groups)


def _with_filters(spec: FireSpec, like: FireSpec) -> FireSpec:
    """`spec` with as many filters as `like`; whatever else a fire has stays."""
    return dataclasses.replace(spec, squeeze=like.squeeze, expand1x1=like.expand1x1, expand3x3=like.expand3x3)


def _round(x: float) -> int:
    """Half up (Python's own `round` goes to even), and at least one filter."""
    return max(1, math.floor(x + 0.5))
