"""Fashion-MNIST's four files for the tests: generated ones, and what the real ones must hold."""

import gzip
import http.server
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorflow_datasets.core import hashing
from tiny_settings import make_settings

from squeezenet_jax.data import sources, tfds_builders

REPOSITORY = Path(tfds_builders.__file__).parents[2]
REAL_FOLDER = Path("/usr/share/datasets/fashion-mnist")
NAMES = list(tfds_builders.CONTENT_SHA256)
PREFIXES = {"train": "train", "test": "t10k"}
TINY_SIZES = {"train": 40, "test": 12}

needs_real_files = pytest.mark.skipif(
    not all((REAL_FOLDER / name).exists() for name in NAMES),
    reason=f"no Fashion-MNIST in {REAL_FOLDER}; apt-get install dataset-fashion-mnist",
)


def read_split(name: str, split: str, data_dir: str, *, size: int = 28, channels: int = 1) -> tuple[Any, Any]:
    """What training reads: images [N, size, size, channels] and labels."""
    sources._load.cache_clear()
    data = make_settings(
        data__name=name, data__dir=data_dir, data__train_split=split, data__image_size=size, data__channels=channels
    ).data
    source = sources.load(data, "train_split")
    assert isinstance(source, sources.InMemory) and not source.unreadable
    return source.image, source.label


def idx_files(seed: int) -> dict[str, bytes]:
    """Content of the four files, with a few random images in them."""
    rng = np.random.default_rng(seed)
    files = {}
    for split, size in TINY_SIZES.items():
        image = rng.integers(0, 256, (size, 28, 28), np.uint8)
        label = rng.integers(0, 10, size, np.uint8)
        files[f"{PREFIXES[split]}-images-idx3-ubyte.gz"] = struct.pack(">4I", 0x803, size, 28, 28) + image.tobytes()
        files[f"{PREFIXES[split]}-labels-idx1-ubyte.gz"] = struct.pack(">2I", 0x801, size) + label.tobytes()
    return files


def arrays(files: dict[str, bytes], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one split in the order in which TFDS writes them: by the hash of the key."""
    image = np.frombuffer(files[f"{PREFIXES[split]}-images-idx3-ubyte.gz"][16:], np.uint8).reshape(-1, 28, 28, 1)
    label = np.frombuffer(files[f"{PREFIXES[split]}-labels-idx1-ubyte.gz"][8:], np.uint8)
    hasher = hashing.Hasher(split)
    order = sorted(range(len(label)), key=hasher.hash_key)
    return image[order], label[order].astype(np.int32)


def put(files: dict[str, bytes], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(gzip.compress(content, mtime=0))


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def no_network_and_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds_builders, "DEBIAN_FOLDER", tmp_path / "no-package")
    monkeypatch.setattr(tfds_builders, "BASE_URL", "http://127.0.0.1:9/")  # "discard": nobody listens
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def assert_reads(files: dict[str, bytes], data_dir: Path) -> None:
    for split in PREFIXES:
        image, label = read_split("fashion_mnist", split, str(data_dir))
        expected_image, expected_label = arrays(files, split)
        np.testing.assert_array_equal(image, expected_image)
        np.testing.assert_array_equal(label, expected_label)
        assert image.dtype == np.uint8 and label.dtype == np.int32


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class CutHandler(QuietHandler):
    """Promises more bytes than it sends."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"\x1f\x8b\x08")
