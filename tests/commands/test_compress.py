"""compress and decompress, as a user types them, on small networks."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from squeezenet_jax import weights
from squeezenet_jax.__main__ import main
from squeezenet_jax.commands import compress
from squeezenet_jax.compress import sharing
from squeezenet_jax.network import architecture
from squeezenet_jax.weights.bundle import PREPROCESSINGS, Weights, flatten, parameter_shapes, unflatten

NAMES = ("cat", "dog", "emu")


@pytest.fixture(scope="module")
def dense():
    arch = architecture.build("v1.1", geometry="caffe", width=0.25)
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(arch, channels=3, num_classes=3)
    flat = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Weights(arch, unflatten(flat), 3, 3, PREPROCESSINGS["caffe"], NAMES)


@pytest.fixture
def path(dense, tmp_path):
    weights.save(tmp_path / "dense.safetensors", dense)
    return tmp_path / "dense.safetensors"


def run(*argv):
    return main([str(arg) for arg in argv])


def kernels(network):
    return {name: x for name, x in flatten(network.params).items() if name.endswith("/kernel")}


def test_bits_and_density_are_kept_to_and_what_is_small_stays_the_same(dense, path, tmp_path, capsys):
    assert run("compress", path, tmp_path / "a.sqz", "--bits", 4, "--density", 0.3) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 2 + 26 + 1 and f"{(tmp_path / 'a.sqz').stat().st_size:,} bytes in" in out
    again = weights.load(tmp_path / "a.sqz")
    assert again.labels == NAMES and again.provenance["bits"] == "4" and again.provenance["density"] == "0.3"
    for name, kernel in kernels(again).items():
        original = kernels(dense)[name]
        assert len(np.unique(kernel[kernel != 0])) <= 15
        assert np.count_nonzero(kernel) == round(0.3 * kernel.size)
        assert np.abs(original[kernel == 0]).max() <= np.abs(original[kernel != 0]).min()
        assert sharing.relative_error(original[kernel != 0], kernel[kernel != 0]) < 0.15
        assert flatten(again.params)[name.replace("kernel", "bias")].any()
    # What is quantised now can be stored without loss, and turned back.
    capsys.readouterr()
    assert run("compress", tmp_path / "a.sqz", tmp_path / "b.sqz") == 0
    assert capsys.readouterr().out.count("0.00%") == 26
    assert run("decompress", tmp_path / "b.sqz", tmp_path / "c.safetensors") == 0
    assert run("convert", tmp_path / "c.safetensors", tmp_path / "d.sqz") == 0
    for name in ("b.sqz", "c.safetensors", "d.sqz"):
        for layer, kernel in kernels(weights.load(tmp_path / name)).items():
            assert kernel.tobytes() == kernels(again)[layer].tobytes()


def test_kmeans_beats_the_centroids_that_it_begins_with_and_leaves_few_values_alone():
    rng = np.random.default_rng(0)
    kernel = rng.laplace(size=(1, 1, 40, 50)).astype(np.float32)
    layer = sharing.share("x", kernel, np.zeros(50, np.float32), 5)
    assert len(layer.values) == 32 and (np.diff(layer.values[1:]) > 0).all() and layer.values[0] == 0
    even = np.linspace(kernel.min(), kernel.max(), 31)
    nearest = even[np.abs(kernel[..., None] - even).argmin(-1)]
    assert sharing.relative_error(kernel, layer.kernel_HWIO) < 0.7 * sharing.relative_error(kernel, nearest)
    for number in np.unique(layer.code_HWIO):  # every centroid is its weights' mean
        members = kernel[layer.code_HWIO == number].astype(np.float64)
        np.testing.assert_allclose(layer.values[number], members.mean(), rtol=1e-5)
    few = np.float32([0, 0.1, 7, 7, -3]).reshape(1, 1, 1, 5)
    assert (sharing.share("x", few, np.zeros(5, np.float32), 2).kernel_HWIO == few).all()
    assert not sharing.share("x", few * 0, np.zeros(5, np.float32), 2).kernel_HWIO.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["o.onnx"], "must end in .sqz or .net"),
        (["none/o.sqz"], "none/o.sqz: there is no folder none"),
        (["o.sqz"], "fire6/expand3x3: has 5,184 different weights, and at most 4,095 can be stored"),
        (["o.net", "--bits", "4"], "a .net holds v1.0"),
        (["o.sqz", "--bits", "1"], "--bits: 1 is not allowed; it must be from 2 to 8"),
        (["o.sqz", "--density", "nan"], "--density: nan is not allowed"),
        (["o.sqz", "--density", "0"], "above 0 and at most 1"),
        (["o.sqz", "--bytes", "320k"], "--bytes: needs --calibrate DIR beside it"),
        (["o.sqz", "--calibrate", "d"], "--calibrate: needs --bytes SIZE beside it"),
        (["o.sqz", "--bytes", "3x", "--calibrate", "d"], "--bytes: '3x' is not allowed"),
        (["o.net", "--bytes", "320k", "--calibrate", "d"], "is for .sqz"),
        (["o.sqz", "--bytes", "1k", "--calibrate", "d", "--bits", "4"], "--bits: cannot be chosen with --bytes"),
        (["o.sqz", "--bytes", "320k", "--calibrate", "missing"], "missing: is no folder; a folder of images is needed"),
    ],
)
def test_options_that_make_no_sense_end_in_one_line(path, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    assert run("compress", path, *options) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["d", "dense.safetensors"]


@pytest.mark.parametrize(("text", "number"), [("320k", 320_000), ("0.5MB", 500_000), ("1234", 1234), ("2kB", 2000)])
def test_sizes_are_decimal(text, number):
    args = argparse.Namespace(out=Path("o.sqz"), bits=None, density=None, bytes=text, calibrate=Path("d"))
    assert compress.check(args) == number
