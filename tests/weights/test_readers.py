"""Both .safetensors layouts, and what holds for every format: what is written is what is read, the rest is refused."""

import dataclasses
import errno
import itertools
import os

import numpy as np
import pytest
import safetensors.numpy
from weight_files import (
    assert_same_params,
    caffemodel,
    refused,
    state_dict,
    tiny_arch,
    tiny_weights,
    torch_zip,
    without,
)

from squeezenet_jax import weights
from squeezenet_jax.network import architecture
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights import PREPROCESSINGS
from squeezenet_jax.weights.bundle import Weights, flatten, parameter_shapes, unflatten
from squeezenet_jax.weights.formats import metadata
from squeezenet_jax.weights.formats.state_dicts import OTHERS, TAKEN

VERSIONS = tuple(architecture.VERSIONS)


# -- own layout ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "bypass", "geometry", "channels"),
    [*itertools.product(VERSIONS, architecture.BYPASSES, architecture.GEOMETRIES, (3,)), ("v1.1", "simple", "same", 1)],
)
def test_own_layout_round_trip(tmp_path, version, bypass, geometry, channels):
    first = tiny_weights(version, bypass, geometry, channels, labels=("a", "b", "c"), provenance={"source": "here"})
    weights.save(tmp_path / "w.safetensors", first)
    again = weights.load(tmp_path / "w.safetensors")
    assert_same_params(again.params, first.params)
    for field in ("arch", "num_classes", "channels", "preprocessing", "labels", "provenance"):
        assert getattr(again, field) == getattr(first, field), field
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]  # no scratch file


def test_headers_have_a_bound(tmp_path, write):
    with pytest.raises(UserError, match="too long"):
        weights.save(tmp_path / "w.safetensors", tiny_weights(labels=("x" * (1 << 22), "b", "c")))
    refused(write("w.safetensors", (1 << 26).to_bytes(8, "little") + b"{" * (1 << 20)), "a header of 67108864 bytes")


def test_equal_weights_make_equal_files(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        weights.save(tmp_path / name, tiny_weights())
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_own_layout_cannot_be_told_another_bypass_but_another_preprocessing(tmp_path):
    weights.save(tmp_path / "w.safetensors", tiny_weights())
    refused(tmp_path / "w.safetensors", "records its own architecture", bypass="simple")
    again = weights.load(tmp_path / "w.safetensors", preprocessing="torchvision")
    assert again.preprocessing == PREPROCESSINGS["torchvision"] and again.arch == tiny_weights().arch


def test_only_safetensors_are_written(tmp_path):
    with pytest.raises(UserError, match="are written as"):
        weights.save(tmp_path / "w.pth", tiny_weights())
    with pytest.raises(UserError, match="cannot be written"):
        weights.save(tmp_path / "missing" / "w.safetensors", tiny_weights())


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    weights.save(tmp_path / "w.safetensors", tiny_weights())
    before = (tmp_path / "w.safetensors").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    for name in ("w.safetensors", "new.safetensors"):
        with pytest.raises(UserError, match=f"{name}: cannot be written \\(No space left on device\\)"):
            weights.save(tmp_path / name, tiny_weights(seed=1))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "link.safetensors").symlink_to("w.safetensors")
    weights.save(tmp_path / "link.safetensors", tiny_weights())
    assert (tmp_path / "link.safetensors").is_symlink() and not (tmp_path / "w.safetensors").is_symlink()
    assert_same_params(weights.load(tmp_path / "w.safetensors").params, tiny_weights().params)


def test_the_home_folder_and_suffixes_in_capitals(tmp_path, monkeypatch, write):
    monkeypatch.setenv("HOME", str(tmp_path))
    first = tiny_weights()
    weights.save("~/W.SafeTensors", first)
    write("W.CaffeModel", caffemodel(first.params))
    write("W.PTH", torch_zip(state_dict(first)))
    for name in ("W.SafeTensors", "W.CaffeModel", "W.PTH"):
        assert (tmp_path / name).is_file()
        assert_same_params(weights.load(f"~/{name}").params, first.params)
    with pytest.raises(UserError, match="no such file"):
        weights.load("~nobody-has-this-name/w.pth")


def test_names_may_be_long_but_not_too_long(tmp_path):
    name = "n" * 243 + ".safetensors"
    weights.save(tmp_path / name, tiny_weights())
    assert [path.name for path in tmp_path.iterdir()] == [name]
    for use in (lambda path: weights.save(path, tiny_weights()), weights.load):
        with pytest.raises(UserError, match="File name too long"):
            use(tmp_path / f"n{name}")


# -- torchvision's layout --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_torchvision_layout_round_trip(tmp_path, version):
    first = tiny_weights(version, geometry="caffe")
    weights.save(tmp_path / "w.safetensors", first, "torchvision")
    assert set(safetensors.numpy.load_file(tmp_path / "w.safetensors")) == set(state_dict(first))
    again = weights.load(tmp_path / "w.safetensors")
    assert_same_params(again.params, first.params)
    assert again.arch == first.arch and again.preprocessing == first.preprocessing  # by its metadata


def test_batch_norm_is_folded_into_torchvisions_layout(tmp_path):
    arch = dataclasses.replace(tiny_arch(), norm="batch")
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(arch, channels=3, num_classes=5)
    params = {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}
    params |= {name: rng.normal(size=x.shape).astype(np.float32) for name, x in params.items() if x.ndim == 4}
    first = Weights(arch, unflatten(params), 5, 3, PREPROCESSINGS["caffe"])
    weights.save(tmp_path / "own.safetensors", first)
    weights.save(tmp_path / "torchvision.safetensors", first, "torchvision")
    assert_same_params(weights.load(tmp_path / "own.safetensors").params, first.params)
    folded = weights.load(tmp_path / "torchvision.safetensors")
    assert folded.arch == tiny_arch() and folded.preprocessing == first.preprocessing
    factor = params["conv1/scale"] / np.sqrt(params["conv1/var"] + 1e-5)
    bias = params["conv1/bias"] - params["conv1/mean"] * factor
    np.testing.assert_allclose(folded.params["conv1"]["kernel"], params["conv1/kernel"] * factor, rtol=1e-6)
    np.testing.assert_allclose(folded.params["conv1"]["bias"], bias, rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="group normalisation is no part of a convolution"):
        kept = unflatten({name: x for name, x in params.items() if not name.endswith(("mean", "var"))})
        grouped = dataclasses.replace(first, arch=dataclasses.replace(arch, norm="group"), params=kept)
        weights.save(tmp_path / "grouped.safetensors", grouped, "torchvision")


@pytest.mark.parametrize(("version", "kind"), list(itertools.product(VERSIONS, ("Float", "Half", "Double"))))
def test_foreign_torchvision_files_are_read(write, version, kind):
    first = tiny_weights(version)
    path = write("w.safetensors", safetensors.numpy.save(state_dict(first, kind), {"format": "pt"}))
    genuine = weights.load(path)
    assert_same_params(genuine.params, first.params)
    assert genuine.arch == tiny_arch(version, geometry="torchvision")
    assert genuine.preprocessing == PREPROCESSINGS["torchvision"]
    caffe = weights.load(path, preprocessing="caffe", bypass="simple")
    assert caffe.arch == tiny_arch(version, geometry="caffe", bypass="simple")
    assert caffe.preprocessing == PREPROCESSINGS["caffe"]


def test_torchvision_keys_are_torchvisions():
    """torchvision/models/squeezenet.py: the places of the Fire modules in `features`."""
    places = {"v1.0": [3, 4, 5, 7, 8, 9, 10, 12], "v1.1": [3, 4, 6, 7, 9, 10, 11, 12]}
    for version, expected in places.items():
        keys = {key for key in state_dict(tiny_weights(version)) if "squeeze.weight" in key}
        assert keys == {f"features.{place}.squeeze.weight" for place in expected}


def test_what_torchvision_cannot_compute_is_not_written_in_its_layout(tmp_path):
    path = tmp_path / "w.safetensors"
    small_stem = architecture.with_stem(tiny_arch(), "small")
    others = ({"conv10_relu": False}, {"activation": "elu"}, {"squeeze_activation": False})
    changed = [dataclasses.replace(tiny_arch(), **change) for change in others]
    for arch in (tiny_arch(bypass="simple"), small_stem, *changed):
        with pytest.raises(UserError, match="torchvision"):
            weights.save(path, dataclasses.replace(tiny_weights(), arch=arch), "torchvision")
    assert not path.exists()


@pytest.mark.filterwarnings("error")
def test_torchvision_tensors_that_do_not_fit_are_refused(write):
    tensors = state_dict(tiny_weights())
    for changed, message in (
        (without(tensors, "features.3.squeeze.bias"), "missing features.3.squeeze.bias"),
        ({**tensors, "classifier.3.weight": np.zeros(2, np.float32)}, "surplus classifier.3.weight"),
        ({**tensors, "features.0.bias": np.zeros(9, np.float32)}, "wrong shape conv1/bias"),
        ({**tensors, "features.0.weight": np.zeros((4, 3, 5, 5), np.float32)}, "neither v1.0's"),
        ({**tensors, "features.0.bias": np.full(4, np.nan, np.float32)}, "not finite"),
        ({**tensors, "features.0.bias": np.full(4, 1e300)}, "not finite"),  # and numpy does not warn of it
        ({**tensors, "features.0.bias": np.zeros(4, np.int32)}, "type I32 is not allowed"),
        ({"weight": np.zeros(4, np.float32)}, "neither this project's metadata nor torchvision's names"),
        ({}, "neither"),
    ):
        refused(write("w.safetensors", safetensors.numpy.save(changed)), message)


def test_own_layout_without_metadata_is_refused(write):
    flat = {name: np.ascontiguousarray(x) for name, x in flatten(tiny_weights().params).items()}
    refused(write("w.safetensors", safetensors.numpy.save(flat)), "neither this project's metadata")


def test_own_layout_with_other_tensors_is_refused(write):
    first = tiny_weights()
    flat = {name: np.ascontiguousarray(x) for name, x in flatten(first.params).items()}
    text = {metadata.METADATA_KEY: metadata.describe(first)}
    for changed, message in (
        (without(flat, "conv10/bias"), "missing conv10/bias"),
        ({**flat, "conv11/bias": np.zeros(3, np.float32)}, "surplus conv11/bias"),
        ({**flat, "conv10/bias": np.zeros(3, np.int32)}, "conv10/bias: type I32 is not allowed"),
    ):
        refused(write("w.safetensors", safetensors.numpy.save(changed, text)), message)


def test_which_of_two_networks_was_taken_is_recorded_beside_the_file(write):
    """In .safetensors as in torch's files."""
    first, second = tiny_weights(seed=0), tiny_weights(seed=1)
    both = {f"{name}.{key}": x for name, w in (("ema", second), ("net", first)) for key, x in state_dict(w).items()}
    again = weights.load(write("w.safetensors", safetensors.numpy.save(both)))
    assert_same_params(again.params, first.params)
    assert [again.provenance[key] for key in (TAKEN, OTHERS, "format")] == ["net", "ema", "safetensors"]


# -- all of them -----------------------------------------------------------------------------------------------------


def test_format_is_told_by_content_where_it_can_be(write):
    first = tiny_weights()
    path = write("w.bin", safetensors.numpy.save(state_dict(first)))
    assert_same_params(weights.load(path).params, first.params)


def test_parameters_are_in_the_networks_order_and_contiguous_whatever_the_file(write):
    first = tiny_weights()
    backwards = dict(reversed(first.params.items()))
    for name, content in (
        ("w.caffemodel", caffemodel(backwards)),
        ("w.pth", torch_zip(dict(reversed(state_dict(first).items())))),
    ):
        flat = flatten(weights.load(write(name, content)).params)
        assert list(flat) == list(first.shapes())
        assert all(x.flags.c_contiguous for x in flat.values())


def test_a_header_may_have_any_length(tmp_path):
    """Its low byte is the file's first; 0x80 is also how a pickle begins."""
    first_bytes = set()
    for length in range(0, 264, 8):
        first = tiny_weights(provenance={"x": "x" * length})
        for name in ("w.safetensors", "w.model"):
            weights.save(tmp_path / "w.safetensors", first)
            (tmp_path / "w.safetensors").rename(tmp_path / name)
            assert weights.load(tmp_path / name).provenance == first.provenance
        first_bytes.add((tmp_path / "w.model").read_bytes()[0])
    assert 0x80 in first_bytes and len(first_bytes) == 32  # headers are padded to 8 bytes


def test_files_that_are_nothing_known_are_refused(write, tmp_path):
    refused(write("w.txt", b"hello, world"), "no known format")
    refused(tmp_path / "missing.pth", "no such file")
    refused(tmp_path, "not a run")
    refused(write("w.caffemodel", caffemodel(tiny_weights().params)), "complex has parameters", bypass="complex")
    for options in ({"preprocessing": "keras"}, {"bypass": "complex"}, {"bypass": "both"}):
        with pytest.raises(UserError):
            weights.load(write("w.caffemodel", caffemodel(tiny_weights().params)), **options)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4984000\n"
INSTEAD = {
    "a pointer": (POINTER, "is a git-LFS pointer, not the weights themselves"),
    "a page": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page, not weights"),
    "a page in capitals": (b"\xef\xbb\xbf<HTML><HEAD></HEAD></HTML>", "is a web page, not weights"),
    "a large page": (b"<!doctype html>" + b"<p>caf\xc3\xa9</p>" * 100_000, "is a web page, not weights"),
    "an error of a store": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
    "an error of an API": (
        b'{"message": "Not Found",\n "status": "404"}',
        'is JSON text, not weights: {"message": "Not F',
    ),
    "nothing": (b"", "is empty"),
}


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.caffemodel", "w.net", "w.bin"])
@pytest.mark.parametrize("instead", INSTEAD)
def test_what_is_there_in_place_of_weights_is_said(write, name, instead):
    content, message = INSTEAD[instead]
    refused(write(name, content), message)


def test_text_in_place_of_weights_is_shown(write):
    refused(write("w.pth", b"404: Not Found"), "is text, not weights: 404: Not Found")
    refused(write("w.caffemodel", b'name: "SqueezeNet"\nlayer {\n}\n'), "is text, not weights: name: ")


def hub(folder, **files):
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["SqueezeNet"]}')
    (folder / "README.md").write_text("# SqueezeNet")
    for name, content in files.items():
        (folder / name.replace("_DOT_", ".")).write_bytes(content)
    return folder


def test_the_weights_file_in_a_folder_of_a_model_hub_is_read(tmp_path):
    first = tiny_weights()
    safe, torch = safetensors.numpy.save(state_dict(first)), torch_zip(state_dict(first))
    other = torch_zip({"model.embed.weight": np.zeros((2, 2), np.float32)})
    for number, (files, source) in enumerate(
        (
            ({"model_DOT_safetensors": safe}, "model.safetensors"),
            ({"pytorch_model_DOT_bin": torch, "tf_model_DOT_h5": b"\x89HDF"}, "pytorch_model.bin"),
            ({"model_DOT_safetensors": POINTER, "pytorch_model_DOT_bin": torch}, "pytorch_model.bin"),
            ({"optimizer_DOT_bin": other, "model_best_DOT_pth_DOT_tar": torch}, "model_best.pth.tar"),
        )
    ):
        again = weights.load(hub(tmp_path / str(number), **files))
        assert_same_params(again.params, first.params)
        assert again.provenance["source"] == source
    several = hub(tmp_path / "several", a_DOT_safetensors=safe, b_DOT_pth=torch)
    refused(several, "has several weights files; name one of a.safetensors, b.pth")
    refused(hub(tmp_path / "pointer", model_DOT_safetensors=POINTER), "model.safetensors: is a git-LFS pointer")
    refused(hub(tmp_path / "none"), "not a run: .* no file with a suffix of weights")


def test_a_device_is_not_read():
    refused("/dev/zero", "no such file")


def test_the_largest_file_is_read_and_one_byte_more_is_refused(tmp_path, monkeypatch):
    weights.save(tmp_path / "w.safetensors", tiny_weights())
    size = (tmp_path / "w.safetensors").stat().st_size
    monkeypatch.setattr(weights, "MAX_BYTES", size)
    assert_same_params(weights.load(tmp_path / "w.safetensors").params, tiny_weights().params)
    monkeypatch.setattr(weights, "MAX_BYTES", size - 1)
    refused(tmp_path / "w.safetensors", "is larger than")


def test_too_large_a_file_is_refused_unread(tmp_path):
    with (tmp_path / "w.net").open("wb") as file:
        file.truncate(1 << 40)  # sparse: takes no space
    refused(tmp_path / "w.net", "larger than 256 MiB")
