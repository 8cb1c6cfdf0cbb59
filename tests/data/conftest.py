"""Fixtures: a folder of photographs; a prepared archive; Fashion-MNIST, whose only server is this process."""

import gzip
import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import picture_folders
import pytest
from fashion_files import NAMES, REAL_FOLDER, QuietHandler, idx_files, no_network_and_no_package
from prepare_files import SHARD_BYTES, Listener, encoded, jpeg, picture, write_tar

from squeezenet_jax.data import tfds_builders
from squeezenet_jax.data.prepare.writer import Prepared, prepare


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return picture_folders.write(tmp_path / "pictures")


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prepared]:
    """1,200 images as a compressed archive, and what comes of it without an interruption."""
    root = tmp_path_factory.mktemp("many")
    files = {f"train/{'abc'[i % 3]}/{i}.jpg": jpeg(i) for i in range(1000)}
    files |= {f"val/{'abc'[i % 3]}/{i}.png": encoded(picture(i), "PNG") for i in range(200)}
    files["train/a/broken.jpg"] = jpeg(0)[:300]
    source = write_tar(root / "many.tar.gz", files, "gz")
    whole = prepare(source, root / "whole", Listener(), short_side=12, shard_bytes=SHARD_BYTES)
    return source, whole


@pytest.fixture
def tiny_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Generated files in place of the real ones: their digests are the table, and they are nowhere on disk yet."""
    files = idx_files(seed=0)
    for name, content in files.items():
        monkeypatch.setitem(tfds_builders.CONTENT_SHA256, name, hashlib.sha256(content).hexdigest())
    no_network_and_no_package(tmp_path, monkeypatch)
    return files


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`serve(folder)` makes the builder download from that folder."""
    servers = []

    def start(folder: Path, handler: type[QuietHandler] = QuietHandler) -> None:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(tfds_builders, "BASE_URL", f"http://127.0.0.1:{server.server_address[1]}/")
        servers.append(server)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def real_files() -> dict[str, bytes]:
    return {name: gzip.decompress((REAL_FOLDER / name).read_bytes()) for name in NAMES}


@pytest.fixture(scope="session")
def real_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir with the whole of Fashion-MNIST, prepared once."""
    data_dir = tmp_path_factory.mktemp("tfds")
    tfds_builders.prepare_fashion_mnist(data_dir)
    return data_dir
