"""Typed settings of one run, and the strict conversion of a config into them. Standard library only.

The one place where a config (nested mapping) becomes frozen dataclasses; the rest of the package never sees a
ConfigDict. `experiments/base.py` owns every default. A field that has one here, too, is one that files of older
versions lack, and it is what those versions did.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any, TypeVar

from squeezenet_jax.network import architecture
from squeezenet_jax.network.architecture import Architecture, Metaparameters
from squeezenet_jax.system.errors import UserError, check_choice, unknown

KERNEL_INITS = ("glorot_uniform", "lecun_uniform", "he_uniform", "lsuv")
CONV10_INITS = ("same", "normal_0.01")
STARTS = ("init_from", "scratch")
FREEZES = ("none", "conv1", *(f"fire{number}" for number in range(2, 10)))
DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "linear", "poly", "constant")
CROPS = ("whole", "random_resized")
DECODERS = ("auto", "pillow", "simplejpeg")
# Fields that say where and how things are done and do not change a result.
PLACES = {"data.dir", "data.workers", "train.hang_minutes"}


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The network; `architecture` makes its table."""

    version: str
    stem: str
    geometry: str
    width: float
    bypass: str
    bypass_relu: bool
    conv10_relu: bool
    base_e: int
    incr_e: int
    freq: int
    squeeze_ratio: float
    pct3x3: float
    dropout: float
    kernel_init: str
    lsuv_std: float
    conv10_init: str
    init_from: str
    start: str
    freeze: str
    dtype: str

    def __post_init__(self) -> None:
        check_choice("model.kernel_init", self.kernel_init, KERNEL_INITS)
        check_choice("model.conv10_init", self.conv10_init, CONV10_INITS)
        check_choice("model.dtype", self.dtype, DTYPES)
        check_choice("model.start", self.start, STARTS)
        check_choice("model.freeze", self.freeze, FREEZES)
        if self.freeze != "none" and not self.weights:
            raise UserError(f"model.freeze: {self.freeze} is not allowed without weights; set model.init_from")
        _check("model.dropout", self.dropout, 0 <= self.dropout < 1, "at least 0 and below 1")
        _check("model.lsuv_std", self.lsuv_std, self.lsuv_std > 0, "above 0")

    @property
    def weights(self) -> str:
        """The file or run directory to start from; "" for a start from scratch."""
        return self.init_from if self.start == "init_from" else ""

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the modules that training leaves as they are: conv1 to `freeze`."""
        return FREEZES[1 : FREEZES.index(self.freeze) + 1]

    def architecture(self) -> Architecture:
        try:
            arch = architecture.build(
                self.version,
                stem=self.stem,
                geometry=self.geometry,
                width=self.width,
                bypass=self.bypass,
                metaparameters=Metaparameters(self.base_e, self.incr_e, self.freq, self.squeeze_ratio, self.pct3x3),
            )
        except UserError as error:
            raise UserError(f"model.{error}") from None
        return dataclasses.replace(
            arch, dropout=self.dropout, conv10_relu=self.conv10_relu, bypass_relu=self.bypass_relu
        )


@dataclasses.dataclass(frozen=True)
class DataSettings:
    name: str
    dir: str
    train_split: str
    eval_split: str
    image_size: int
    channels: int
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: str
    crop_min_area: float
    eval_resize: int
    crop_padding: int
    flip: bool
    decoder: str
    workers: int
    exif_orientation: bool = False  # turn a photograph as its camera says it was held; runs before there was this: not

    def __post_init__(self) -> None:
        check_choice("data.crop", self.crop, CROPS)
        check_choice("data.decoder", self.decoder, DECODERS)
        _check("data.crop_min_area", self.crop_min_area, 0 < self.crop_min_area <= 1, "above 0 and at most 1")
        if self.crop == "random_resized":
            at_least = f"at least data.image_size, which is {self.image_size}"
            _check("data.eval_resize", self.eval_resize, self.eval_resize >= self.image_size, at_least)
        _check("data.workers", self.workers, self.workers >= 0, "at least 0")
        _check("data.num_classes", self.num_classes, self.num_classes >= 2, "at least 2")
        _check("data.crop_padding", self.crop_padding, self.crop_padding >= 0, "at least 0")
        for field in ("mean", "std"):
            values = getattr(self, field)
            allowed = f"one value, or one for each of the {self.channels} channels"
            _check(f"data.{field}", values, len(values) in (1, self.channels), allowed)
        _check("data.mean", self.mean, 0 <= min(self.mean) <= max(self.mean) <= 1, "from 0 to 1, as pixels are")
        _check("data.std", self.std, min(self.std) > 0, "above 0")


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    name: str
    peak_lr: float
    schedule: str
    poly_power: float
    warmup_epochs: float
    momentum: float
    beta2: float
    weight_decay: float
    decay_bias: bool
    clip_norm: float

    def __post_init__(self) -> None:
        check_choice("optimizer.name", self.name, OPTIMIZERS)
        check_choice("optimizer.schedule", self.schedule, SCHEDULES)
        _check("optimizer.peak_lr", self.peak_lr, self.peak_lr > 0, "above 0")
        for field in ("poly_power", "warmup_epochs", "weight_decay", "clip_norm"):
            value = getattr(self, field)
            _check(f"optimizer.{field}", value, value >= 0, "at least 0")
        for field in ("momentum", "beta2"):
            value = getattr(self, field)
            _check(f"optimizer.{field}", value, 0 <= value < 1, "at least 0 and below 1")


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    epochs: float
    batch_size: int
    accumulation_steps: int
    eval_batch_size: int
    eval_every_epochs: float
    log_every_steps: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    stall_margin: float
    hang_minutes: float

    def __post_init__(self) -> None:
        for field in (
            "batch_size",
            "accumulation_steps",
            "eval_batch_size",
            "log_every_steps",
            "checkpoint_every_steps",
            "keep_checkpoints",
        ):
            value = getattr(self, field)
            _check(f"train.{field}", value, value >= 1, "at least 1")
        for field in ("epochs", "eval_every_epochs"):
            value = getattr(self, field)
            _check(f"train.{field}", value, value > 0, "above 0")
        for field in ("stall_margin", "hang_minutes"):
            value = getattr(self, field)
            _check(f"train.{field}", value, value >= 0, "at least 0")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides a run's result, and `PLACES`. Two runs with equal settings have equal curves."""

    seed: int
    model: ModelSettings
    data: DataSettings
    optimizer: OptimizerSettings
    train: TrainSettings

    def __post_init__(self) -> None:
        _check("seed", self.seed, 0 <= self.seed < 2**32, "at least 0 and below 2**32")
        warmup, epochs = self.optimizer.warmup_epochs, self.train.epochs
        _check("optimizer.warmup_epochs", warmup, warmup < epochs, f"below train.epochs, which is {epochs:g}")
        self.trace()

    def trace(self) -> list[architecture.Layer]:
        """Every layer of the network for this data; raises `UserError` where the two do not fit."""
        arch, data = self.model.architecture(), self.data
        try:
            return architecture.trace(
                arch, image_size=data.image_size, channels=data.channels, num_classes=data.num_classes
            )
        except UserError as error:
            raise UserError(f"data.{error}") from None


def from_config(config: Mapping[str, Any]) -> Settings:
    """Converts nested plain mappings, field by field; unknown, missing or ill-typed fields raise `UserError`."""
    return _convert(Settings, config, "")


T = TypeVar("T")


def _convert(kind: type[T], config: Mapping[str, Any], prefix: str) -> T:
    hints = typing.get_type_hints(kind)
    for name in config:
        if name not in hints:
            raise unknown("config", prefix + name, [prefix + known for known in hints])
    optional = {field.name for field in dataclasses.fields(typing.cast(Any, kind)) if field.default is not MISSING}
    missing = [prefix + name for name in hints if name not in config and name not in optional]
    if missing:
        raise UserError(f"config: {', '.join(missing)} missing; a group of fields can't be replaced, only its fields")
    given = {name: hint for name, hint in hints.items() if name in config}
    return kind(**{name: _convert_value(hint, config[name], prefix + name) for name, hint in given.items()})


def _convert_value(hint: Any, value: Any, field: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"config: {field}: {value!r} is not a group of fields")
        return _convert(typing.cast(type, hint), value, field + ".")
    if isinstance(hint, types.GenericAlias):  # tuple[float, ...]
        (element, _) = typing.get_args(hint)
        if not isinstance(value, tuple | list) or not value:
            raise UserError(f"{field}: {value!r} is not allowed; it must be a tuple of {element.__name__}")
        return tuple(_convert_value(element, item, field) for item in value)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is float and not math.isfinite(value):
        raise UserError(f"{field}: {value} is not allowed; it must be finite")
    if type(value) is not hint:
        raise UserError(f"{field}: {value!r} is not allowed; it must be of type {hint.__name__}")
    return value


def _check(field: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise UserError(f"{field}: {value} is not allowed; it must be {allowed}")
