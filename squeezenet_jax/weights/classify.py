"""From images to named classes: `classify` for the library, its parts for the command `predict`.

Letters: B batch, N images, H, W, C, K classes. Read next: `inference.py`.
"""

import functools
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import PIL.Image

from squeezenet_jax.data.images import decoding
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights import inference
from squeezenet_jax.weights.bundle import Preprocessing, Weights
from squeezenet_jax.weights.formats.torchvision_layout import ASSUMED
from squeezenet_jax.weights.images import in_batches, preprocess, read_image

BATCH_SIZE = 16
Image = str | os.PathLike[str] | PIL.Image.Image | np.ndarray
Answer = list[tuple[str, float]]  # (class name, probability), the most probable first

# Compiled for one image, for several and for many, as they are asked for; they end with their weights.
Compile = Callable[[Weights, int, float], inference.Forward]
_programs: weakref.WeakKeyDictionary[Weights, dict[tuple[int, bool, Compile], inference.Forward]]
_programs = weakref.WeakKeyDictionary()


@overload
def classify(  # type: ignore[overload-overlap]
    weights: Weights, images: Image, top: int = ..., *, engine: Compile | None = ...
) -> Answer: ...
@overload
def classify(
    weights: Weights, images: Iterable[Image], top: int = ..., *, engine: Compile | None = ...
) -> list[Answer]: ...


def classify(
    weights: Weights, images: Image | Iterable[Image], top: int = 5, *, engine: Compile | None = None
) -> Answer | list[Answer]:
    """The `top` most probable classes as (name, softmax probability), the most probable first.

    Example: `classify(load("v11.safetensors"), "cat.jpg")[0]` might be `("tabby, tabby cat", 0.62)`.

    Args:
      weights: of `load`; their preprocessing is applied. Classes that have no names are called "class 281".
      images: a path, a PIL image, or an array, uint8 [H, W] or [H, W, C] with C = 1, 3 (RGB) or 4 (RGBA);
        or several of those, for which a list of answers is returned. A photograph is turned as its EXIF orientation
        says; what is transparent is white.
      top: at least 1; of fewer classes, all.
      engine: what computes the logits, such as `export.engines.onnxruntime`; XLA, unless given.

    The network is compiled at the first call with one image and at the first with several. Raises `UserError` for an
    image that cannot be read.
    """
    if top < 1:
        raise UserError(f"top: {top} is not allowed; it must be at least 1")
    if ASSUMED in weights.provenance:
        warnings.warn(
            f"{weights.provenance.get('source', 'the file')} does not say which preprocessing its weights need; "
            f'{weights.preprocessing.name} is assumed (DeepScale\'s own weights need load(..., preprocessing="caffe"))',
            stacklevel=2,
        )
    one = _is_image(images)
    answers = [
        [(_name(weights, k), probability) for k, probability in top_classes(logits_K, top)]
        for logits_K in logits(weights, [images] if one else list(images), compile_forward=engine)  # type: ignore[arg-type, list-item]
    ]
    return answers[0] if one else answers


def logits(
    weights: Weights,
    images: Sequence[Image],
    unreadable: Callable[[int, UserError], None] | None = None,
    compile_forward: Compile | None = None,
) -> np.ndarray:
    """float32 [N, K], computed in batches of `BATCH_SIZE`, or by itself where there is one image.

    With `unreadable`, which is told its number and why, an image that cannot be read is left out. `compile_forward`
    makes the function that computes them (default: that of `inference`).
    """
    size = 1 if len(images) == 1 else BATCH_SIZE
    logits_by_batch = [np.zeros((0, weights.num_classes), np.float32)]
    readings = (functools.partial(_read, image, n, weights.preprocessing) for n, image in enumerate(images))
    for batch in in_batches(readings, size, unreadable or _raise):
        # Here, for a wrong path waits for no compiler.
        forward = _program(weights, size, len(images), compile_forward or inference.compile_forward)
        logits_by_batch.append(forward(np.stack(batch)))
    return np.concatenate(logits_by_batch)


def _raise(number: int, error: UserError) -> None:
    raise error


def top_classes(logits_K: np.ndarray, top: int) -> list[tuple[int, float]]:
    """The `top` classes with the largest logits, equal ones by class number, with their softmax probability."""
    exps = np.exp(logits_K.astype(np.float64) - logits_K.max())
    return [(int(k), float(exps[k] / exps.sum())) for k in np.argsort(-logits_K, kind="stable")[:top]]


def _name(weights: Weights, k: int) -> str:
    return (weights.labels[k] if weights.labels else "") or f"class {k}"


def _program(weights: Weights, batch_size: int, num_images: int, compile_forward: Compile) -> inference.Forward:
    programs = _programs.setdefault(weights, {})
    key = batch_size, num_images >= inference.MANY_IMAGES, compile_forward
    if key not in programs:
        programs[key] = compile_forward(weights, batch_size, num_images)
    return programs[key]


def _is_image(images: Any) -> bool:
    """Whether this is one image. jax arrays, and whatever else can become a NumPy array, count as arrays."""
    if isinstance(images, str | os.PathLike | PIL.Image.Image) or hasattr(images, "__array__"):
        return True
    if not isinstance(images, Iterable):
        raise UserError(f"images: {_type(images)} is not allowed; it must be a path, a PIL image, an array, or several")
    return False


def _read(image: Any, number: int, preprocessing: Preprocessing) -> np.ndarray:
    """float32 [crop, crop, C], normalised."""
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image), preprocessing, upright=True)
    try:
        picture = image if isinstance(image, PIL.Image.Image) else _picture(image)
        return preprocess(decoding.as_mode(decoding.from_picture(picture), preprocessing.channels), preprocessing)
    except (UserError, decoding.Undecodable) as error:
        raise UserError(f"images[{number}]: {error}") from None


def _picture(image: Any) -> PIL.Image.Image:
    if not hasattr(image, "__array__"):
        raise UserError(f"{_type(image)} is not allowed; it must be a path, a PIL image or an array")
    array = np.asarray(image)
    grey = array.ndim == 2 or array.shape[2:] == (1,)
    if array.dtype != np.uint8 or not (grey or array.shape[2:] in ((3,), (4,))) or 0 in array.shape:
        allowed = "uint8 [H, W] or [H, W, C], with C = 1, 3 or 4"
        raise UserError(f"an array {array.dtype} {list(array.shape)} is not allowed; it must be {allowed}")
    return PIL.Image.fromarray(array[:, :, 0] if grey and array.ndim == 3 else array)


def _type(value: object) -> str:
    return f"a value of type {type(value).__name__}"
