"""int8 files: what is asked for, the pictures that say how far activations reach, and what the rounding costs.

Weights are rounded to 8 bits (in ONNX to 7: `onnx_int8.py` says why), symmetrically, with a scale for each filter;
activations with one scale for each tensor, from the smallest and largest value that any of the calibration pictures
gives. The runtimes' own quantisers do it, `onnx_int8.py` and `tflite_int8.py`. Before a file gets its name, it and the
float file, which is verified against the flax model, look at the same pictures. Letters: B batch, N pictures, H, W, C,
K classes.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from squeezenet_jax.data import archives, layouts
from squeezenet_jax.export.verify import Run
from squeezenet_jax.system import storage
from squeezenet_jax.system.errors import UserError, check_choice
from squeezenet_jax.weights import classes
from squeezenet_jax.weights.bundle import Preprocessing, Weights
from squeezenet_jax.weights.images import images_below, read_image
from squeezenet_jax.weights.scores import Scores

Number = Literal["float32", "int8", "uint8"]
# Points. Published networks lose 3 of 100 and more by chance than by rounding; a wrong range costs 20.
MAX_DROP = 5.0
MAX_CHANGED = 15.0  # of the answers, where nobody knows the right ones: 4 to 11 change while accuracy stays
BATCH_SIZE = 8
MAX_PICTURES = 1000  # of a folder, evenly spread: more say little, and all are kept, 0.6 MB each at 227 px


class Affine(NamedTuple):
    """An integer q stands for (q - zero_point) · scale."""

    number: Number
    scale: float
    zero_point: int

    def quantize(self, x: np.ndarray) -> np.ndarray:
        limits = np.iinfo(self.number)
        q = np.clip(np.rint(x / self.scale) + self.zero_point, limits.min, limits.max)
        return np.asarray(q, self.number)

    def dequantize(self, q: np.ndarray) -> np.ndarray:
        return np.asarray((q.astype(np.float32) - self.zero_point) * self.scale, np.float32)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Image files, and their classes in the network's numbers where those are known."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...] | None
    notes: tuple[str, ...] = ()  # what the user had better know

    def read(self, preprocessing: Preprocessing) -> "Decoded":
        """Decodes all. Raises `UserError` where none can be read."""
        images, labels, unreadable = [], [], []
        for number, path in enumerate(self.paths):
            try:
                images.append(read_image(path, preprocessing))
            except UserError as error:
                unreadable.append(str(error))
            else:
                labels.append(self.labels[number] if self.labels else 0)
        if not images:
            raise UserError(f"none of the {len(self.paths)} files can be read as an image; the first: {unreadable[0]}")
        return Decoded(np.stack(images), np.array(labels) if self.labels else None, tuple(unreadable))


class Decoded(NamedTuple):
    image_NHWC: np.ndarray  # float32, preprocessed
    label_N: np.ndarray | None
    unreadable: tuple[str, ...]

    def batches(self) -> Iterator[slice]:
        return (slice(start, start + BATCH_SIZE) for start in range(0, len(self.image_NHWC), BATCH_SIZE))


@dataclasses.dataclass(frozen=True)
class Int8:
    """What is asked for. Raises `UserError` for what no format has.

    Attributes:
      pictures: to calibrate with, and to judge by.
      per_tensor: one scale for all filters of a layer.
      max_drop: points of top-1 that may be lost, or answers in a hundred that may change where the pictures have no
        classes; `MAX_DROP` and `MAX_CHANGED` unless given.
      input_type: of the file's input; integers stand for what its metadata say. So for `output_type`.
    """

    pictures: Pictures
    per_tensor: bool = False
    max_drop: float | None = None
    input_type: Number = "float32"
    output_type: Number = "float32"

    def __post_init__(self) -> None:
        for field in ("input_type", "output_type"):
            check_choice(field, getattr(self, field), get_args(Number))
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UserError(f"max_drop: {self.max_drop} is not allowed; it must be from 0 to 100 points")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Top-1 of both files on the same pictures; without classes, how many answers of the float file stayed."""

    count: int
    labelled: bool
    float_top1: int
    int8_top1: int
    allowed: float  # points

    @property
    def drop(self) -> float:
        """Points of top-1, or answers in a hundred."""
        return 100 * (self.float_top1 - self.int8_top1) / self.count

    def __str__(self) -> str:
        if not self.labelled:
            changed = self.count - self.int8_top1
            return f"int8 changes {changed} of {self.count} answers, {self.drop:.2f} % (allowed: {self.allowed:g} %)"
        float_, int8 = (f"{100 * hits / self.count:.2f} %" for hits in (self.float_top1, self.int8_top1))
        difference = f"{-self.drop:+.2f} points (allowed: -{self.allowed:g})"
        return f"top-1 of {self.count} images: float {float_}, int8 {int8}, {difference}"


def pictures_in(folder: str | os.PathLike[str], weights: Weights, *, by_position: bool = False) -> Pictures:
    """The images below a folder; with classes, as `evaluate` counts them, if it is one of the network's class folders.

    Raises `UserError` where there is none.
    """
    folder = storage.brought(folder, "--calibrate")
    where = archives.printable(str(folder))
    paths = images_below(folder)
    found = layouts.class_folders(folder)
    notes: tuple[str, ...] = ()
    if found.items:
        try:
            matched = classes.match(weights.labels, weights.num_classes, found.class_names, by_position=by_position)
        except UserError as error:
            notes = (f"{where}: classes are not used, answers are compared: {error}",)
        else:
            labels = tuple(matched.numbers[item.label] for item in found.items)
            notes = (*filter(None, (matched.note,)), *(f"left out: {line}" for line in found.ignored))
            return _some_of(Pictures(tuple(Path(item.path) for item in found.items), labels, notes))
    if not paths:
        raise UserError(f"{where}: holds no files; images to calibrate with are needed")
    return _some_of(Pictures(tuple(paths), None, notes))


def _some_of(pictures: Pictures) -> Pictures:
    count = len(pictures.paths)
    chosen = slice(0, count, -(-count // MAX_PICTURES))
    if chosen.step == 1:
        return pictures
    labels = pictures.labels and pictures.labels[chosen]
    note = f"{len(pictures.paths[chosen]):,} of {count:,} images are used, evenly spread"
    return Pictures(pictures.paths[chosen], labels, (*pictures.notes, note))


def judge(float_run: Run, int8_run: Run, decoded: Decoded, max_drop: float | None) -> Cost:
    """Both files on all pictures. Raises `UserError` where int8 loses more than it may."""
    of_float, of_int8 = Scores(), Scores()
    for part in decoded.batches():
        image_BHWC = decoded.image_NHWC[part]
        float_BK, int8_BK = float_run(image_BHWC), int8_run(image_BHWC)
        label_B = float_BK.argmax(axis=1) if decoded.label_N is None else decoded.label_N[part]
        of_float.add(float_BK, label_B)
        of_int8.add(int8_BK, label_B)
    labelled = decoded.label_N is not None
    allowed = (MAX_DROP if labelled else MAX_CHANGED) if max_drop is None else max_drop
    cost = Cost(of_float.count, labelled, of_float.top1, of_int8.top1, allowed)
    if not cost.drop <= allowed:
        raise UserError(f"int8 costs too much: {cost}; no file was written")
    return cost
