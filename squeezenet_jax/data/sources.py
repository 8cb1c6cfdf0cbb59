"""A split as a source of examples: decoded in memory where that fits, decoded when they are asked for elsewhere.

Letters: N examples, B batch, H, W, C. Read next: `batches.py`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from squeezenet_jax.data import catalog, folder
from squeezenet_jax.data.images import crops, decoding
from squeezenet_jax.settings import DataSettings

IN_MEMORY_BYTES = 2 << 30  # whole images up to this much are decoded once, and kept

Examples = dict[str, Any]  # "image" uint8 [B, H, W, C]; "label", "mask" int32 [B]; "unreadable": names


class Source(Protocol):
    """N examples; an unreadable one has mask 0 and a black image."""

    def __len__(self) -> int: ...

    def read(self, index_B: np.ndarray, draw_B: np.ndarray | None) -> Examples:
        """The examples at `index_B`. In training `draw_B` has a seed for each; without it nothing is drawn."""
        ...


class Records(Protocol):
    """Encoded images with their labels, as they lie on disk."""

    def __len__(self) -> int: ...

    def fetch(self, index: Sequence[int]) -> Sequence[tuple[bytes | decoding.Undecodable, int]]: ...

    def name(self, index: int) -> str: ...

    @property
    def labels(self) -> Sequence[int] | None:
        """Those of all images; None where it would take long to read them."""
        ...


@dataclasses.dataclass(frozen=True)
class InMemory:
    """`image` uint8 [N, H, W, C], `label` int32 [N]; `unreadable` are places in it, with names."""

    image: np.ndarray
    label: np.ndarray
    unreadable: tuple[tuple[int, str], ...] = ()

    def __len__(self) -> int:
        return len(self.label)

    def read(self, index_B: np.ndarray, draw_B: np.ndarray | None = None) -> Examples:
        bad = dict(self.unreadable)
        mask = np.array([index not in bad for index in index_B] if bad else np.ones(len(index_B)), np.int32)
        names = [bad[index] for index in index_B if index in bad] if bad else []
        return {"image": self.image[index_B], "label": self.label[index_B], "mask": mask, "unreadable": names}


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Images that are decoded, cropped and resized each time they are read."""

    records: Records
    data: DataSettings

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index_B: np.ndarray, draw_B: np.ndarray | None = None) -> Examples:
        size, channels = self.data.image_size, self.data.channels
        image = np.zeros((len(index_B), size, size, channels), np.uint8)
        mask = np.ones(len(index_B), np.int32)
        names = []
        fetched = self.records.fetch([int(index) for index in index_B])
        for place, (content, _) in enumerate(fetched):
            try:
                image[place] = self._decode(content, None if draw_B is None else draw_B[place])
            except decoding.Undecodable as error:
                mask[place] = 0
                names.append(f"{self.records.name(int(index_B[place]))}: {error}")
        label = np.array([label for _, label in fetched], np.int32)
        return {"image": image, "label": label, "mask": mask, "unreadable": names}

    def _decode(self, content: bytes | decoding.Undecodable, draw: np.ndarray | None) -> np.ndarray:
        if isinstance(content, decoding.Undecodable):
            raise content
        data = self.data
        how: dict[str, Any] = {"decoder": data.decoder, "exif_orientation": data.exif_orientation}
        if data.crop == "whole":
            return crops.whole(content, data.image_size, data.channels, **how)
        if draw is None:
            return crops.centre_crop(content, data.image_size, data.channels, resize=data.eval_resize, **how)
        rng, min_area = np.random.default_rng(draw), data.crop_min_area
        return crops.random_resized_crop(content, data.image_size, data.channels, rng, min_area=min_area, **how)


def load(data: DataSettings, field: str) -> Source:
    """The split that `data.<field>` (`train_split` or `eval_split`) names, at `data.image_size`.

    Where the dataset is grey and `data.channels` is 3, the three are the same.
    """
    return _load(data, field, getattr(data, field))


@functools.lru_cache(maxsize=2)  # a sweep's runs read the same two
def _load(data: DataSettings, field: str, text: str) -> Source:
    directory = _tfds_directory(data)
    found = catalog.info(data.name, data.dir)
    split = catalog.parse_split(f"data.{field}", text, data.name, found)
    if data.name == "digits":
        image, label = _digits(split.name)
        image, label = _resize(image, data.image_size)[split.start : split.stop], label[split.start : split.stop]
        return InMemory(np.broadcast_to(image, (*image.shape[:3], data.channels)), label)
    records: Records
    if directory is None:
        records = folder.records(data.dir, split.name, split.start, split.stop)
    else:
        from squeezenet_jax.data.tfds_source import TfdsRecords

        records = TfdsRecords(directory, split.name, split.start, split.stop)
    channels = min(data.channels, found.channels)
    if data.crop == "whole" and len(records) * data.image_size**2 * channels <= IN_MEMORY_BYTES:
        native = dataclasses.replace(data, channels=channels, mean=data.mean[:1], std=data.std[:1])
        return _in_memory(Encoded(records, native), data.channels)
    return Encoded(records, data)


def left_out(data: DataSettings) -> tuple[str, ...]:
    """What the folder of images holds beside images, by its place: "train/cat/.x.jpg: hidden"."""
    return folder.scan(data.dir).ignored if data.name == catalog.FOLDER else ()


def _tfds_directory(data: DataSettings) -> Path | None:
    """Where the dataset lies as TFDS has it, prepared now if this program can; None for what TFDS has no part in."""
    if data.name in catalog.NOT_TFDS:
        return None
    from squeezenet_jax.data import tfds_source

    return tfds_source.prepared(data.name, data.dir)


def _in_memory(source: Encoded, channels: int) -> InMemory:
    stretches = np.array_split(np.arange(len(source)), max(len(source) // 1000, 1))
    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(source.read, stretches))
    image, label, mask = (np.concatenate([part[name] for part in parts]) for name in ("image", "label", "mask"))
    names = [name for part in parts for name in part["unreadable"]]
    unreadable = tuple(zip(map(int, np.flatnonzero(mask == 0)), names, strict=True))
    return InMemory(np.broadcast_to(image, (*image.shape[:3], channels)), label, unreadable)


def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits, 8x8 in 17 grey levels; a fixed fifth of each class is the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    image = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    label = digits.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(label))
    place_in_class = np.zeros(len(label), int)
    for digit in range(10):
        members = order[label[order] == digit]
        place_in_class[members] = np.arange(len(members))
    chosen = order[(place_in_class[order] % 5 == 0) == (split == "test")]
    return image[chosen], label[chosen]


def _resize(image_NHW1: np.ndarray, size: int) -> np.ndarray:
    """Bilinear, to `size` x `size`."""
    pictures = (Image.fromarray(image[..., 0]) for image in image_NHW1)
    resized = [np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)) for picture in pictures]
    return np.stack(resized)[..., None]
