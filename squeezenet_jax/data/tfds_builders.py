"""A tensorflow-datasets builder that needs no TensorFlow: Fashion-MNIST as a genuine TFDS directory.

The builder that ships with TFDS unpacks and encodes with TensorFlow; this one does the same with the standard
library and Pillow. It has the same name, version, features and example keys, so that what it writes is read by plain
`tfds.data_source("fashion_mnist", data_dir=..., download=False)`, in the same order as the original's.

The four files come from the first of: `<data_dir>/downloads/manual` (where TFDS, too, looks for files that a person
put there), the folder of Debian's package `dataset-fashion-mnist`, the address that TFDS registers. A download is one
request with a time limit, checked before it gets its name; TFDS's own downloader would retry for minutes without a
network.

Letters: N examples, H = W = 28, C = 1. Read next: `tfds_source.py`, which turns a prepared data set into arrays.
"""

import gzip
import hashlib
import http.client
import io
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from squeezenet_jax.system import atomic
from squeezenet_jax.system.errors import UserError

BASE_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"  # as registered by TFDS
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
TIMEOUT_S = 30.0  # for connecting and for each read

# SHA-256 of each file's content after unpacking. Debian strips the name and the time from the gzip headers, so the
# archives differ from the originals while the content is the same; the originals' archives unpack to these digests.
CONTENT_SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

CLASS_NAMES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc, call-arg]
    """Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747): 60,000 + 10,000 images [28, 28, 1], 10 classes.

    An example's key is its index in the original file. The class is not registered: `tfds.builder("fashion_mnist")`
    stays the original's.
    """

    name = "fashion_mnist"
    VERSION = tfds.core.Version("3.0.1")

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Zalando's article images: 28x28 grey values, 60,000 to train on and 10,000 to test on.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(names=CLASS_NAMES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        manual_dir = Path(dl_manager.download_dir) / "manual"
        return {
            split: self._generate_examples(
                read_content(f"{prefix}-images-idx3-ubyte.gz", manual_dir),
                read_content(f"{prefix}-labels-idx1-ubyte.gz", manual_dir),
            )
            for split, prefix in (("train", "train"), ("test", "t10k"))
        }

    def _generate_examples(self, images: bytes, labels: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields (key, example); idx content is a big-endian header of 4 bytes + 4 per dimension, then uint8 values."""
        image_NHW = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
        label_N = np.frombuffer(labels, np.uint8, offset=8)
        for key, (image_HW, label) in enumerate(zip(image_NHW, label_N, strict=True)):
            png = io.BytesIO()
            Image.fromarray(image_HW).save(png, "PNG")
            yield key, {"image": png.getvalue(), "label": int(label)}


def prepare_fashion_mnist(data_dir: Path) -> None:
    """Writes `<data_dir>/fashion_mnist/3.0.1` if it is not there; the directory appears complete or not at all.

    Raises:
      UserError: a file is missing and cannot be downloaded, is damaged, or `data_dir` cannot be written.
    """
    builder = FashionMnist(data_dir=data_dir, file_format="array_record")
    if builder.is_prepared():
        return
    for name in CONTENT_SHA256:  # before the builder makes a directory
        read_content(name, data_dir / "downloads" / "manual")
    try:
        builder.download_and_prepare()
    except OSError as error:
        # A faster process may have put its own there; ours was written under another name and has been removed.
        if not FashionMnist(data_dir=data_dir).is_prepared():
            raise UserError(f"{data_dir}: cannot write the data set fashion_mnist there: {error}") from error
    if not FashionMnist(data_dir=data_dir).is_prepared():
        raise UserError(f"{builder.data_dir}: is there, but is no complete TFDS data set; delete it and start again")


def read_content(name: str, manual_dir: Path) -> bytes:
    """The verified, unpacked content of one of the four files; downloads it into `manual_dir` if it is nowhere.

    Raises:
      UserError: nowhere and not to be downloaded, or not the original's content.
    """
    for folder in (manual_dir, DEBIAN_FOLDER):
        path = folder / name
        try:
            return _verified(path.read_bytes(), name)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise UserError(
                f"{path}: {error}; delete it and start again, or put the original file in its place"
            ) from error
    return _download(name, manual_dir)


def _download(name: str, manual_dir: Path) -> bytes:
    url = BASE_URL + name
    remedy = f"put the file into {manual_dir}, or install Debian's package dataset-fashion-mnist"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            archive = response.read()
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise UserError(
            f"{name}: not in {manual_dir}, not in {DEBIAN_FOLDER}, and not to be had from {url} ({error}); {remedy}"
        ) from error
    try:
        content = _verified(archive, name)
    except ValueError as error:
        raise UserError(f"{name}: what came from {url} is wrong: {error}; {remedy}") from error
    try:
        manual_dir.mkdir(parents=True, exist_ok=True)
        atomic.write(manual_dir / name, archive)
    except OSError as error:
        raise UserError(f"{manual_dir}: cannot be written: {error.strerror or error}") from error
    return content


def _verified(archive: bytes, name: str) -> bytes:
    """The unpacked archive. Raises `ValueError` saying what is wrong if that is not the original content."""
    try:
        content = gzip.decompress(archive)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"damaged gzip file of {len(archive):,} bytes ({error})") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != CONTENT_SHA256[name]:
        raise ValueError(f"the SHA-256 of its unpacked content is {digest}, expected {CONTENT_SHA256[name]}")
    return content
