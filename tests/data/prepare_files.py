"""Small collections of images for the tests of `prepare`, and plain TFDS to read what was written."""

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"
PHOTOGRAPHS = SHARED / "imagenet_sample_100.tar"
CIFAR10 = SHARED / "cifar10-jpeg.tar.xz"
SHARD_BYTES = 20_000  # of the fixture `many`: more than 20 shards

needs_photographs = pytest.mark.skipif(
    not PHOTOGRAPHS.exists(), reason="there is no ../shared/data with a sample of ImageNet's photographs"
)
needs_cifar10 = pytest.mark.skipif(
    not CIFAR10.exists(), reason="there is no ../shared/data with CIFAR-10 as JPEG files"
)


class Listener:
    """Hears how far the work is."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.total = self.done = 0

    def begin(self, what: str, total: int, unit: str) -> None:
        self.total, self.done = total, 0

    def advance(self, count: int) -> None:
        self.done += count

    def say(self, text: str) -> None:
        self.said.append(text)


def picture(seed: int, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> Image.Image:
    """`size` is (width, height). Smooth, so that JPEG hardly changes it."""
    rng = np.random.default_rng(seed)
    channels = len(Image.new(mode, (1, 1)).getbands())
    corners = rng.integers(0, 256, (2, 2, channels), np.uint8)
    bands = [Image.fromarray(corners[..., c]).resize(size, Image.Resampling.BILINEAR) for c in range(channels)]
    return Image.merge(mode, bands) if channels > 1 else bands[0]


def encoded(image: Image.Image, file_format: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def jpeg(seed: int, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> bytes:
    return encoded(picture(seed, size, mode), quality=95)


def small_collection() -> dict[str, bytes | None]:
    """Path -> content; None is an empty folder."""
    files: dict[str, bytes | None] = {"train/bee": None, "train/dog": None}
    for seed in range(30):
        files[f"train/{('ant', 'cat')[seed % 2]}/{seed:03}.jpg"] = jpeg(seed)
    for seed in range(30, 40):
        files[f"val/{('ant', 'dog')[seed % 2]}/{seed:03}.jpg"] = jpeg(seed)
    return files


def write_folder(root: Path, files: dict[str, bytes | None]) -> Path:
    for name, content in files.items():
        path = root / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


def tar_bytes(files: dict[str, bytes | None], compression: str = "") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes | None], compression: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files, compression))
    return path


def read(directory: Path, split: str) -> dict[str, tuple[str, bytes, np.ndarray]]:
    """By plain TFDS, in order: file name -> class, stored bytes, pixels."""
    builder = tfds.builder_from_directory(directory)
    raw = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    name_of = builder.info.features["label"].int2str
    return {
        example["file_name"].decode(): (name_of(example["label"]), stored["image"], example["image"])
        for example, stored in zip(builder.as_data_source(split), raw, strict=True)
    }


def shape(directory: Path) -> tuple[int | None, ...]:
    return tuple(tfds.builder_from_directory(directory).info.features["image"].shape)


def digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }
