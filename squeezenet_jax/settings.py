"""Settings of one run, each declared once: type, default, meaning, allowed values. Standard library only.

A default is the paper's, the model card's (GoogleCloudPlatform/keras-idiomatic-programmer, zoo/squeezenet) or none at
all; recipes stand in the presets of `experiments/base.py`. `from_config` is the one place where a config (nested
mapping) becomes frozen dataclasses; the rest of the package never sees a ConfigDict. A file that was written before a
field existed gets its default, so the default of a new field is what was in effect before.

`python -m squeezenet_jax.settings > docs/settings.md` writes the page that lists them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from squeezenet_jax.network import architecture
from squeezenet_jax.network.architecture import (
    ACTIVATIONS,
    BYPASSES,
    GEOMETRIES,
    NORMS,
    STEMS,
    VERSIONS,
    Architecture,
    Metaparameters,
)
from squeezenet_jax.network.trace import Layer, trace
from squeezenet_jax.system import fields, nested
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.system.fields import require, setting

KERNEL_INITS = ("glorot_uniform", "lecun_uniform", "he_uniform", "lsuv")
CONV10_INITS = ("same", "normal_0.01")
FREEZES = ("none", "conv1", *(f"fire{number}" for number in range(2, 10)))
OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "linear", "poly", "constant")
DECODERS = ("auto", "pillow", "simplejpeg")
PRUNINGS = ("none", "uniform", "global", "table1")
SHARINGS = ("none", "kmeans", "uniform")
MAX_BITS = 8


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The network, and the weights that it starts from."""

    version: str = setting("v1.0", "layer table: the paper's, or DeepScale's smaller v1.1", choices=VERSIONS)
    stem: str = setting("card", "the version's, for 224 px; small, for 8 to 64: 3x3, stride 1, no pool", choices=STEMS)
    geometry: str = setting("same", "borders of stem, pools and conv10; same: the model card's", choices=GEOMETRIES)
    width: float = setting(1.0, "multiplies the filters of conv1 and of the fires", above=0)
    bypass: str = setting("none", "connections around fires (paper Sec. 6)", choices=BYPASSES)
    bypass_relu: bool = setting(True, "activation on a complex bypass's 1x1 convolution; the paper leaves it open")
    conv10_relu: bool = setting(True, "activation between conv10 and the global average")
    norm: str = setting("none", "of every convolution's output but conv10's, before its bias", choices=NORMS)
    activation: str = setting("relu", "after the convolutions", choices=ACTIVATIONS)
    squeeze_activation: bool = setting(True, "activation after the squeeze layers")
    base_e: int = setting(128, "expand filters of the first fire (metaparameters: paper Sec. 5.1)", low=2)
    incr_e: int = setting(128, "how many are added every model.freq fires", low=0)
    freq: int = setting(2, "fires with the same number of expand filters", low=1)
    squeeze_ratio: float = setting(0.125, "squeeze filters / expand filters", above=0)
    pct3x3: float = setting(0.5, "share of the expand filters that are 3x3", above=0, below=1)
    dropout: float = setting(0.5, "share of the last fire's outputs that training sets to 0", low=0, below=1)
    kernel_init: str = setting("glorot_uniform", "the card's; lecun: Caffe's; he: torchvision's", choices=KERNEL_INITS)
    lsuv_std: float = setting(1.0, "standard deviation that lsuv gives to outputs without a norm", above=0)
    conv10_init: str = setting("same", "as the rest; normal_0.01: Caffe's, torchvision's", choices=CONV10_INITS)
    init_from: str = setting("", "weights to start from: a file or name that `convert` reads, or a run; empty: none")
    start: str = setting("init_from", "from those weights, if any, or from scratch", choices=("init_from", "scratch"))
    freeze: str = setting("none", "last module that keeps the weights it started from", choices=FREEZES)
    dtype: str = setting("float32", "of activations; parameters are float32", choices=("float32", "bfloat16"))

    def __post_init__(self) -> None:
        fields.check(self, "model")
        if self.freeze != "none" and not self.weights:
            raise UserError(f"model.freeze: {self.freeze} is not allowed without weights; set model.init_from")
        if self.freeze != "none" and self.norm == "batch":
            raise UserError(
                f"model.freeze: {self.freeze} is not allowed with model.norm batch, whose statistics go on changing"
            )

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
                norm=self.norm,
                activation=self.activation,
                squeeze_activation=self.squeeze_activation,
                metaparameters=Metaparameters(self.base_e, self.incr_e, self.freq, self.squeeze_ratio, self.pct3x3),
            )
        except UserError as error:
            raise UserError(f"model.{error}") from None
        return dataclasses.replace(
            arch, dropout=self.dropout, conv10_relu=self.conv10_relu, bypass_relu=self.bypass_relu
        )


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The images, and what is done to them before the network sees them."""

    name: str = setting("imagenet2012", "digits, fashion_mnist, folder, or what `prepare` or TFDS put into data.dir")
    dir: str = setting("~/tensorflow_datasets", "TFDS's; of folder: the one with `train/<class>/`", decides=False)
    train_split: str = setting("train", "a split, or a part: train[:80%], train[80%:], train[100:200]")
    eval_split: str = setting("", "the same; empty: test, or validation where there is no test")
    allow_overlap: bool = setting(False, "lets images be trained on and evaluated as well", decides=False)
    image_size: int = setting(224, "px; smaller images are enlarged to it", low=1)
    channels: int = setting(3, "1 (grey) or 3 (RGB)", low=1)
    num_classes: int = setting(0, "0: as many as the dataset has", low=0)
    mean: tuple[float, ...] = setting((0.0,), "of pixels in 0..1, for each channel or all; subtracted", low=0, high=1)
    std: tuple[float, ...] = setting((1.0,), "what they are then divided by", above=0)
    crop: str = setting("whole", "the image, squashed; or Inception's crops", choices=("whole", "random_resized"))
    crop_min_area: float = setting(0.08, "of random_resized: the smallest crop's share of the image", above=0, high=1)
    eval_resize: int = setting(256, "of random_resized: px of the short side, whose centre is evaluated")
    crop_padding: int = setting(0, "px of zeros around an image, for random crops of its own size; 0: none", low=0)
    flip: bool = setting(False, "mirrors half of the images")
    cutout: int = setting(0, "px: side of a random square that becomes the mean (arXiv 1708.04552); 0: none", low=0)
    mixup_alpha: float = setting(0.0, "blends pairs by shares from Beta(alpha, alpha) (1710.09412); 0: none", low=0)
    decoder: str = setting("auto", "of JPEG files; auto: simplejpeg where it is installed", choices=DECODERS)
    exif_orientation: bool = setting(False, "turns a photograph as its camera says it was held")
    workers: int = setting(0, "processes that decode; 0: threads, one for each core", low=0, decides=False)

    def __post_init__(self) -> None:
        fields.check(self, "data")
        require("data.num_classes", self.num_classes, self.num_classes >= 2, "at least 2")  # `catalog.resolve` sets it
        if self.crop == "random_resized":
            at_least = f"at least data.image_size, which is {self.image_size}"
            require("data.eval_resize", self.eval_resize, self.eval_resize >= self.image_size, at_least)
        at_most = f"at most data.image_size, which is {self.image_size}"
        require("data.cutout", self.cutout, self.cutout <= self.image_size, at_most)
        for field in ("mean", "std"):
            values = getattr(self, field)
            allowed = f"one value, or one for each of the {self.channels} channels"
            require(f"data.{field}", values, len(values) in (1, self.channels), allowed)


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """The solver. The defaults are the paper's: those of DeepScale/SqueezeNet, SqueezeNet_v1.0/solver.prototxt."""

    name: str = setting("sgd", "SGD with momentum, or AdamW", choices=OPTIMIZERS)
    peak_lr: float = setting(0.04, "learning rate after the warm-up", above=0)
    schedule: str = setting("linear", "of the learning rate; all but constant end at 0", choices=SCHEDULES)
    poly_power: float = setting(0.5, "of schedule poly; 0.5: the solver of the released v1.0", low=0)
    warmup_epochs: float = setting(0.0, "of a learning rate that rises linearly from 0", low=0)
    momentum: float = setting(0.9, "sgd's momentum, adamw's beta 1", low=0, below=1)
    beta2: float = setting(0.999, "of adamw", low=0, below=1)
    weight_decay: float = setting(2e-4, "share of a weight that is added to its gradient; adamw's is decoupled", low=0)
    decay_bias: bool = setting(True, "weight decay of biases and of norms' scales too, as in Caffe")
    clip_norm: float = setting(0.0, "largest norm of the whole gradient; 0: no clipping", low=0)
    label_smoothing: float = setting(0.0, "share of a label spread over all classes (1512.00567)", low=0, below=1)

    def __post_init__(self) -> None:
        fields.check(self, "optimizer")


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How long, in which parts, and what is written on the way. 68 epochs of 512 images: DeepScale's solver."""

    epochs: float = setting(68.0, "passes over the training images", above=0)
    batch_size: int = setting(512, "images of one step, over all devices", low=1)
    ema_decay: float = setting(0.0, "of an average of the parameters, which is what is used; 0: none", low=0, below=1)
    accumulation_steps: int = setting(1, "parts of a batch, one after the other: same result, less memory", low=1)
    eval_batch_size: int = setting(256, "images of one step of an evaluation, over all devices", low=1)
    eval_every_epochs: float = setting(1.0, "epochs from one evaluation to the next", above=0)
    log_every_steps: int = setting(20, "steps that a line of the log sums up", low=1)
    checkpoint_every_steps: int = setting(500, "steps from one checkpoint to the next", low=1)
    keep_checkpoints: int = setting(2, "how many are kept, the newest", low=1)
    stall_margin: float = setting(0.02, "a training loss this close to ln(classes) has not begun to learn", low=0)
    hang_minutes: float = setting(30.0, "after these without progress the process ends; 0: never", low=0, decides=False)

    def __post_init__(self) -> None:
        fields.check(self, "train")


@dataclasses.dataclass(frozen=True)
class CompressSettings:
    """What training removes and shares (arXiv 1510.00149, 1607.04381); times are shares of the training's steps."""

    prune: str = setting(
        "none", "smallest weights go: in each layer, in all together, or as in the paper's Table 1", choices=PRUNINGS
    )
    density: float = setting(1.0, "share of the weights that pruning keeps", above=0, high=1)
    prune_from: float = setting(0.4, "when pruning begins", low=0, below=1)
    prune_until: float = setting(0.6, "when the density is reached, ever more slowly", low=0, below=1)
    dense_from: float = setting(1.0, "when removed weights may grow again (DSD); 1: never", above=0, high=1)
    share: str = setting("none", "weights of a layer become equal: k-means, or multiples of a step", choices=SHARINGS)
    bits: int = setting(8, "a layer has at most 2**bits different weights, 0 included", low=2, high=MAX_BITS)
    share_from: float = setting(0.8, "when they do; from then on the shared values are trained", low=0, below=1)

    def __post_init__(self) -> None:
        fields.check(self, "compress")
        until = f"at least compress.prune_from, which is {self.prune_from:g}"
        require("compress.prune_until", self.prune_until, self.prune_until >= self.prune_from, until)
        if self.prune != "none":
            after = f"at least compress.prune_until, which is {self.prune_until:g}"
            require("compress.dense_from", self.dense_from, self.dense_from >= self.prune_until, after)
            if self.share != "none":
                require("compress.share_from", self.share_from, self.share_from >= self.prune_until, after)
        if self.share != "none":
            never = "1 where weights are shared (compress.share)"
            require("compress.dense_from", self.dense_from, self.dense_from == 1, never)

    @property
    def active(self) -> bool:
        return (self.prune, self.share) != ("none", "none")


@dataclasses.dataclass(frozen=True)
class LoggingSettings:
    """Where curves go beside metrics.jsonl. Nothing here changes a result, and no failure in it ends a run."""

    tensorboard: bool = setting(False, "TensorBoard's event files in the run's directory", decides=False)
    wandb: str = setting("", "project of Weights & Biases; empty: none", decides=False)

    def __post_init__(self) -> None:
        fields.check(self, "logging")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides a run's result, and `PLACES`. Two runs with equal settings have equal curves."""

    seed: int = setting(0, "everything random follows from it", low=0, below=2**32)
    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    data: DataSettings = dataclasses.field(default_factory=DataSettings)
    optimizer: OptimizerSettings = dataclasses.field(default_factory=OptimizerSettings)
    train: TrainSettings = dataclasses.field(default_factory=TrainSettings)
    compress: CompressSettings = dataclasses.field(default_factory=CompressSettings)
    logging: LoggingSettings = dataclasses.field(default_factory=LoggingSettings)

    def __post_init__(self) -> None:
        fields.check(self, "")
        warmup, epochs = self.optimizer.warmup_epochs, self.train.epochs
        require("optimizer.warmup_epochs", warmup, warmup < epochs, f"below train.epochs, which is {epochs:g}")
        parts = self.train.accumulation_steps
        if self.model.norm == "batch":
            size = self.train.batch_size
            require("train.batch_size", size, size > 1, "at least 2 with model.norm batch")
        if self.model.norm == "batch" and parts > 1:
            raise UserError(
                f"train.accumulation_steps: {parts} is not allowed with model.norm batch, whose statistics need the "
                "whole batch; use model.norm group, or a smaller train.batch_size"
            )
        not_shared = {
            "batch": "which gives every filter a scale of its own",
            "group": "which a compressed file cannot hold",
        }
        if why := not_shared.get(self.model.norm):
            allowed = f"none with model.norm {self.model.norm}, {why}"
            require("compress.share", self.compress.share, self.compress.share == "none", allowed)
        self.trace()

    def trace(self) -> list[Layer]:
        """Every layer of the network for this data; raises `UserError` where the two do not fit."""
        arch, data = self.model.architecture(), self.data
        try:
            return trace(arch, image_size=data.image_size, channels=data.channels, num_classes=data.num_classes)
        except UserError as error:
            raise UserError(f"data.{error}") from None


ROWS = tuple(fields.rows(Settings))
DEFAULTS: dict[str, Any] = {row.name: row.default for row in ROWS}  # by dotted name
# Fields that say where and how things are done and do not change a result.
PLACES = {row.name for row in ROWS if not row.rule.decides}
# A field that has no effect unless another has one of certain values.
ONLY_WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    "model.bypass_relu": ("model.bypass", ("complex",)),
    "model.lsuv_std": ("model.kernel_init", ("lsuv",)),
    "model.init_from": ("model.start", ("init_from",)),
    "data.crop_min_area": ("data.crop", ("random_resized",)),
    "data.eval_resize": ("data.crop", ("random_resized",)),
    "optimizer.poly_power": ("optimizer.schedule", ("poly",)),
    "optimizer.beta2": ("optimizer.name", ("adamw",)),
    "compress.density": ("compress.prune", ("uniform", "global")),
    **{f"compress.{name}": ("compress.prune", PRUNINGS[1:]) for name in ("prune_from", "prune_until", "dense_from")},
    **{f"compress.{name}": ("compress.share", SHARINGS[1:]) for name in ("bits", "share_from")},
}
# What the layers' table follows from: filters are rounded, so that two widths may be one network.
OF_TABLE = {f"model.{name}" for name in ("version", "stem", "geometry", "width", "bypass")}
OF_TABLE |= {f"model.{field.name}" for field in dataclasses.fields(Metaparameters)}
OF_FILES = {"data.dir", "data.decoder", "data.exif_orientation"}  # of which digits has none


def idle(settings: Settings) -> set[str]:
    """The settings, by dotted name, that have no effect beside the others."""
    flat = nested.flatten(dataclasses.asdict(settings), ".")
    names = {name for name, (other, values) in ONLY_WITH.items() if flat[other] not in values}
    if settings.data.name == "digits":
        names |= OF_FILES
    if not settings.optimizer.weight_decay:
        names.add("optimizer.decay_bias")
    if settings.train.batch_size == 1:  # an image has no other to be blended with
        names.add("data.mixup_alpha")
    return names


def effective(settings: Settings) -> dict[str, Any]:
    """What the settings do, by dotted name, the table as one: equal ones do the same."""
    left_out = idle(settings) | OF_TABLE
    flat = nested.flatten(dataclasses.asdict(settings), ".")
    table = dataclasses.replace(settings.model.architecture(), bypass_relu=False)  # that has a line of its own
    return {name: value for name, value in flat.items() if name not in left_out} | {"table": table}


def from_config(config: Mapping[str, Any]) -> Settings:
    """Converts nested plain mappings; a missing field has its default, whatever is wrong raises `UserError`."""
    try:
        return fields.convert(Settings, config, "config")
    except OverflowError:  # each number may be within its bounds, and their product not
        raise UserError("config: its numbers make layers beyond all bounds; see model.width and model.base_e") from None


def page() -> str:
    """docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Written by `python -m squeezenet_jax.settings > docs/settings.md`.",
        "",
        "A setting is changed on the command line (`--config.model.width=0.5`), in an experiment, or in a preset of",
        "`experiments/base.py`. The command line beats the sweep, the sweep the experiment, the experiment the preset,",
        "and the preset these defaults.",
    ]
    groups = {field.name: field.type for field in dataclasses.fields(Settings) if field.name not in DEFAULTS}
    for title in ("", *groups):
        about = ["", f"## {title}", "", " ".join(str(groups[title].__doc__).split())] if title else []
        lines += [*about, "", "| name | type | default | allowed | meaning |", "|---|---|---|---|---|"]
        for name, type_, default, rule in ROWS:
            if name.rpartition(".")[0] == title:
                lines.append(f"| `{name}` | {type_} | `{default!r}` | {rule.allowed or 'any'} | {rule.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
