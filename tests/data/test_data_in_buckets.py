"""Datasets in a bucket: what `prepare` puts there comes back the same."""

import dataclasses
import io

import numpy as np
from PIL import Image
from store_servers import BUCKET

from squeezenet_jax.__main__ import main
from squeezenet_jax.data import catalog, sources
from squeezenet_jax.settings import DataSettings
from squeezenet_jax.system import storage
from squeezenet_jax.system.storage import buckets, copies


def jpeg(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def forget(monkeypatch, cache):
    """As on another machine."""
    monkeypatch.setenv("SQUEEZENET_JAX_BUCKETS", str(cache))
    for function in (copies._cache, storage.fetch_once, sources._load):
        function.cache_clear()
    copies._cached.clear()


def test_a_dataset_that_is_prepared_into_a_bucket_is_read_from_it_elsewhere(
    google_store, tmp_path, monkeypatch, capsys
):
    for split, number in (("train", 12), ("val", 4)):
        for i in range(number):
            path = tmp_path / "flowers" / split / ("rose", "tulip")[i % 2] / f"{i:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(i))
    forget(monkeypatch, tmp_path / "here")
    out = f"{google_store.root}/data"
    assert main(["prepare", str(tmp_path / "flowers"), "--out", out]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"wrote {out}/flowers/1.0.0\n") and f"--config.data.dir={out}" in printed
    names = buckets.connect("gs", BUCKET).entries("data/")
    assert not [name for name in names if "incomplete" in name or not name.startswith("data/flowers/1.0.0/")]

    forget(monkeypatch, tmp_path / "elsewhere")
    data = DataSettings(
        name="flowers", dir=out, num_classes=2, image_size=8, train_split="train", eval_split="validation"
    )
    assert catalog.info("flowers", out).splits == {"train": 12, "validation": 4}
    there = tmp_path / "elsewhere" / "gs" / BUCKET / "data/flowers/1.0.0"
    assert not list(there.glob("*array_record*"))  # to plan, the description is enough
    local = dataclasses.replace(data, name="folder", dir=str(tmp_path / "flowers"))
    ours, theirs = (sources.load(settings, "train_split") for settings in (data, local))
    assert list(there.glob("*array_record*"))
    np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_array_equal(ours.label, theirs.label)
    before = {path: path.stat().st_mtime_ns for path in there.iterdir()}
    storage.fetch_once.cache_clear()
    sources._load.cache_clear()
    sources.load(data, "train_split")
    assert {path: path.stat().st_mtime_ns for path in there.iterdir()} == before  # once is enough
