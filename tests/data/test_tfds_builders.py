"""Preparing Fashion-MNIST without TensorFlow: where the files come from, what is refused, what is written.

Most tests send a few generated images through the real path, with the table of digests replaced by theirs. The tests
named `..._real_...` use the real files of Debian's package `dataset-fashion-mnist` and are skipped without it.
"""

import gzip
import hashlib
import struct
import subprocess
import sys
from typing import Any

import pytest
import tensorflow_datasets as tfds
from fashion_files import (
    NAMES,
    REAL_FOLDER,
    REPOSITORY,
    CutHandler,
    QuietHandler,
    assert_reads,
    idx_files,
    listing,
    needs_real_files,
    no_network_and_no_package,
    put,
    read_split,
)

from squeezenet_jax.data import tfds_builders
from squeezenet_jax.system.errors import UserError


def test_prepares_from_the_manual_folder_and_reads_every_image_by_its_key(tiny_files, tmp_path):
    put(tiny_files, tmp_path / "downloads" / "manual")
    assert_reads(tiny_files, tmp_path)
    assert not list((tmp_path / "fashion_mnist").glob("incomplete*"))


def test_prepares_from_the_package_folder(tiny_files, tmp_path, monkeypatch):
    put(tiny_files, tmp_path / "package")
    monkeypatch.setattr(tfds_builders, "DEBIAN_FOLDER", tmp_path / "package")
    assert_reads(tiny_files, tmp_path / "data")


def test_accepts_any_gzip_header(tiny_files, tmp_path):
    """Debian strips the name and the time, the originals have both."""
    name = NAMES[0]
    path = tmp_path / name
    with path.open("wb") as file, gzip.GzipFile("train-images-idx3-ubyte", "wb", fileobj=file, mtime=1504176606) as out:
        out.write(tiny_files[name])
    assert tfds_builders.read_content(name, tmp_path) == tiny_files[name]


def test_manual_folder_comes_before_the_package(tiny_files, tmp_path, monkeypatch):
    put(idx_files(seed=1), tmp_path / "package")  # would be refused
    monkeypatch.setattr(tfds_builders, "DEBIAN_FOLDER", tmp_path / "package")
    put(tiny_files, tmp_path / "downloads" / "manual")
    assert_reads(tiny_files, tmp_path)


def test_downloads_once_and_keeps_the_files(tiny_files, tmp_path, monkeypatch, serve):
    put(tiny_files, tmp_path / "www")
    serve(tmp_path / "www")
    assert_reads(tiny_files, tmp_path / "data")
    manual = tmp_path / "data" / "downloads" / "manual"
    assert listing(manual) == set(NAMES)

    monkeypatch.setattr(tfds_builders, "BASE_URL", "http://127.0.0.1:9/")
    for path in sorted((tmp_path / "data" / "fashion_mnist").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "data" / "fashion_mnist").rmdir()
    assert_reads(tiny_files, tmp_path / "data")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["cut", "empty", "no gzip", "flipped", "other content"])
def test_refuses_a_damaged_file_and_leaves_nothing(tiny_files, tmp_path, name, damage):
    manual = tmp_path / "downloads" / "manual"
    put(tiny_files, manual)
    archive = (manual / name).read_bytes()
    flipped = bytearray(archive)
    flipped[len(archive) // 2] ^= 0xFF
    damaged = {
        "cut": archive[: len(archive) // 2],
        "empty": b"",
        "no gzip": b"<html>please log in</html>",
        "flipped": bytes(flipped),
        "other content": gzip.compress(idx_files(seed=1)[name]),
    }
    (manual / name).write_bytes(damaged[damage])
    before = listing(tmp_path)
    with pytest.raises(UserError, match="delete it and start again") as caught:
        read_split("fashion_mnist", "train", str(tmp_path))
    assert str(manual / name) in str(caught.value) and "\n" not in str(caught.value)
    assert listing(tmp_path) == before

    (manual / name).write_bytes(archive)
    assert_reads(tiny_files, tmp_path)


def test_without_files_and_network_says_what_to_do(tiny_files, tmp_path):
    data_dir = tmp_path / "data"
    with pytest.raises(UserError, match=r"Connection refused.*dataset-fashion-mnist") as caught:
        read_split("fashion_mnist", "train", str(data_dir))
    for place in (NAMES[0], str(data_dir / "downloads" / "manual"), str(tmp_path / "no-package"), "127.0.0.1:9"):
        assert place in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not data_dir.exists()


def test_one_missing_file_is_enough_to_stop(tiny_files, tmp_path):
    manual = tmp_path / "downloads" / "manual"
    put(tiny_files, manual)
    (manual / NAMES[-1]).unlink()
    before = listing(tmp_path)
    with pytest.raises(UserError, match=NAMES[-1]):
        tfds_builders.prepare_fashion_mnist(tmp_path)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "served, handler, message",
    [
        ("other content", QuietHandler, "SHA-256"),
        ("nothing", QuietHandler, "404"),
        ("cut", CutHandler, "IncompleteRead"),
    ],
)
def test_refuses_a_bad_download_and_leaves_nothing(tiny_files, tmp_path, serve, served, handler, message):
    put(idx_files(seed=1) if served == "other content" else {}, tmp_path / "www")
    serve(tmp_path / "www", handler)
    data_dir = tmp_path / "data"
    with pytest.raises(UserError, match=message) as caught:
        read_split("fashion_mnist", "train", str(data_dir))
    assert "127.0.0.1" in str(caught.value) and "\n" not in str(caught.value)
    assert not data_dir.exists()


def test_real_digests_refuse_generated_files(tmp_path, monkeypatch, serve):
    no_network_and_no_package(tmp_path, monkeypatch)
    put(idx_files(seed=0), tmp_path / "www")
    serve(tmp_path / "www")
    with pytest.raises(UserError, match="c59f468a2f672dc8"):
        read_split("fashion_mnist", "train", str(tmp_path / "data"))


def test_a_killed_preparation_is_done_again(tiny_files, tmp_path):
    put(tiny_files, tmp_path / "downloads" / "manual")
    script = """
import os, signal, sys
from pathlib import Path
from squeezenet_jax.data import tfds_builders
for name, digest in zip(sys.argv[2::2], sys.argv[3::2]):
    tfds_builders.CONTENT_SHA256[name] = digest
def examples(self, images, labels, generate=tfds_builders.FashionMnist._generate_examples):
    for key, example in generate(self, images, labels):
        yield key, example
        if key == 10 and len(labels) < 30:  # in the second split
            os.kill(os.getpid(), signal.SIGKILL)
tfds_builders.FashionMnist._generate_examples = examples
tfds_builders.prepare_fashion_mnist(Path(sys.argv[1]))
"""
    table = [word for item in tfds_builders.CONTENT_SHA256.items() for word in item]
    command = [sys.executable, "-c", script, str(tmp_path), *table]
    killed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=120)
    assert killed.returncode == -9, killed.stderr
    assert list((tmp_path / "fashion_mnist").glob("incomplete*"))
    assert not tfds_builders.FashionMnist(data_dir=tmp_path).is_prepared()
    assert_reads(tiny_files, tmp_path)


def test_a_faster_process_may_prepare_the_same(tiny_files, tmp_path, monkeypatch):
    put(tiny_files, tmp_path / "downloads" / "manual")
    split_generators = tfds_builders.FashionMnist._split_generators

    def overtaken(self: Any, dl_manager: Any) -> Any:
        monkeypatch.setattr(tfds_builders.FashionMnist, "_split_generators", split_generators)
        tfds_builders.prepare_fashion_mnist(tmp_path)
        return split_generators(self, dl_manager)

    monkeypatch.setattr(tfds_builders.FashionMnist, "_split_generators", overtaken)
    assert_reads(tiny_files, tmp_path)
    assert not list((tmp_path / "fashion_mnist").glob("incomplete*"))


def test_data_dir_that_cannot_be_made(tiny_files, tmp_path, monkeypatch):
    put(tiny_files, tmp_path / "package")
    monkeypatch.setattr(tfds_builders, "DEBIAN_FOLDER", tmp_path / "package")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*Not a directory"):
        read_split("fashion_mnist", "train", str(tmp_path / "file" / "data"))


def test_is_the_official_builder_but_for_its_code(tmp_path):
    official = tfds.builder("fashion_mnist", data_dir=tmp_path)  # not ours: ours is not registered
    ours = tfds_builders.FashionMnist(data_dir=tmp_path)
    assert type(official).__module__.startswith("tensorflow_datasets.")
    assert (ours.name, ours.version) == (official.name, official.version)
    assert ours.info.features.to_json() == official.info.features.to_json()
    assert ours.info.supervised_keys == official.info.supervised_keys
    assert {tfds_builders.BASE_URL + name for name in NAMES} <= set(official.url_infos)


@needs_real_files
def test_real_digests_belong_to_the_files_that_tfds_registers(tmp_path):
    """With name and time put back into their headers, Debian's archives are TFDS's, by its own size and SHA-256."""
    url_infos = tfds.builder("fashion_mnist", data_dir=tmp_path).url_infos
    for name, digest in tfds_builders.CONTENT_SHA256.items():
        archive = (REAL_FOLDER / name).read_bytes()
        assert archive[:4] == b"\x1f\x8b\x08\x00", "no header field set"
        time = 1504176606 if name.startswith("train") else 1504176627  # 2017-08-31, as in the originals
        stem = name.removesuffix(".gz").encode()
        original = b"\x1f\x8b\x08\x08" + struct.pack("<I", time) + archive[8:10] + stem + b"\0" + archive[10:]
        registered = url_infos[tfds_builders.BASE_URL + name]
        assert (len(original), hashlib.sha256(original).hexdigest()) == (registered.size, registered.checksum)
        assert hashlib.sha256(gzip.decompress(original)).hexdigest() == digest


@needs_real_files
def test_real_files_are_downloaded_and_cut_ones_refused(tmp_path, monkeypatch, serve):
    no_network_and_no_package(tmp_path, monkeypatch)
    serve(REAL_FOLDER)
    for name in NAMES:
        tfds_builders.read_content(name, tmp_path / "manual")
        assert (tmp_path / "manual" / name).read_bytes() == (REAL_FOLDER / name).read_bytes()
    images = tmp_path / "manual" / NAMES[0]
    images.write_bytes(images.read_bytes()[:-1000])
    with pytest.raises(UserError, match="damaged gzip file of 26,420,856 bytes"):
        tfds_builders.read_content(NAMES[0], tmp_path / "manual")
