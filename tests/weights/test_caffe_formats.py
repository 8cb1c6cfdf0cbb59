"""Caffe's two formats: .caffemodel in both of its layer formats, and Deep Compression's .net."""

import dataclasses
import itertools

import numpy as np
import pytest
from weight_files import (
    CLASSES,
    assert_same_params,
    blob,
    caffemodel,
    deep_compression,
    field,
    oihw,
    refused,
    sparse,
    tiny_arch,
    tiny_weights,
    without,
)

from squeezenet_jax import weights
from squeezenet_jax.network import architecture
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights import PREPROCESSINGS
from squeezenet_jax.weights.bundle import flatten, parameter_shapes, unflatten
from squeezenet_jax.weights.formats import caffemodel as caffe_reader
from squeezenet_jax.weights.formats import deep_compression as net

VERSIONS = tuple(architecture.VERSIONS)


# -- Caffe -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "old", "double"), list(itertools.product(VERSIONS, (False, True), (False, True))))
def test_caffemodel(write, version, old, double):
    first = tiny_weights(version)
    again = weights.load(write("w.caffemodel", caffemodel(first.params, old=old, double=double)))
    assert_same_params(again.params, first.params)
    assert again.arch == tiny_arch(version, geometry="caffe") and again.preprocessing == PREPROCESSINGS["caffe"]
    assert (again.arch.conv10_padding == 1) == (version == "v1.0")


@pytest.mark.parametrize("old", [False, True])
def test_caffemodel_tells_a_simple_bypass(write, old):
    path = write("w.caffemodel", caffemodel(tiny_weights().params, old=old, sums=4))
    assert weights.load(path).arch == weights.load(path, bypass="simple").arch == tiny_arch(bypass="simple")
    refused(path, "contradicts the file", bypass="none")
    refused(write("w.caffemodel", caffemodel(tiny_weights().params, old=old, sums=3)), "3 Eltwise layers")
    stripped = write("w.caffemodel", caffemodel(tiny_weights().params, old=old))
    assert weights.load(stripped, bypass="simple").arch == tiny_arch(bypass="simple")


SQUEEZES = [f"fire{number}/squeeze1x1" for number in range(2, 10)]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("missing", "changes"),
    [
        ([], {}),
        (["conv10"], {"conv10_relu": False}),
        (SQUEEZES, {"squeeze_activation": False}),
        ([*SQUEEZES, "conv10"], {"squeeze_activation": False, "conv10_relu": False}),
    ],
    ids=["none", "conv10's", "squeeze layers'", "both"],
)
def test_relus_that_a_caffemodel_lacks_are_not_computed(write, old, missing, changes):
    params = tiny_weights().params
    names = {name.rpartition("/")[0] for name in flatten(params)}
    content = caffemodel(params, old=old, activated=sorted(names - set(missing)))
    assert weights.load(write("w.caffemodel", content)).arch == dataclasses.replace(
        tiny_arch(geometry="caffe"), **changes
    )


@pytest.mark.parametrize("old", [False, True])
def test_caffemodels_that_compute_something_else_are_refused(write, old):
    params = tiny_weights().params
    names = sorted({name.rpartition("/")[0] for name in flatten(params)})
    for missing in (["conv1"], SQUEEZES[:1], ["fire3/expand1x1", "conv10"]):
        content = caffemodel(params, old=old, activated=[name for name in names if name not in missing])
        refused(write("w.caffemodel", content), f"none behind .*{missing[0]}")
    layer = 2 if old else 100
    named = field(4, b"x") + field(5, 23) if old else field(1, b"x") + field(2, b"ELU")
    refused(write("w.caffemodel", caffemodel(params, old=old) + field(layer, named)), "layer x is (TanH|ELU), which")
    kind = field(4, b"r") + field(5, 18) if old else field(1, b"r") + field(2, b"ReLU")
    slope, none = (field(30 if old else 123, b"\x0d" + np.float32(x).tobytes()) for x in (0.1, 0))
    refused(write("w.caffemodel", caffemodel(params, old=old) + field(layer, kind + slope)), "layer r is a ReLU with a")
    assert weights.load(write("w.caffemodel", caffemodel(params, old=old) + field(layer, kind + none))).arch.conv10_relu
    prelu = field(4, b"x") + field(5, 23) if old else field(1, b"x") + field(2, b"PReLU") + field(7, blob(np.zeros(4)))
    refused(write("w.caffemodel", caffemodel(params, old=old) + field(layer, prelu)), "layer x is (TanH|PReLU), which")


@pytest.mark.parametrize("old", [False, True])
def test_one_relu_behind_both_expand_layers_is_one_behind_each(write, old):
    """And blobs need not have the names of the layers that write them, nor ReLUs work in place."""
    params = tiny_weights().params
    names = sorted({name.rpartition("/")[0] for name in flatten(params)})
    expands = [name for name in names if "expand" in name]
    content = caffemodel(params, old=old, activated=[name for name in names if name not in expands])
    bottom, top, number = (2, 3, 2) if old else (3, 4, 100)
    for fire in range(2, 10):
        for kind, inputs, output in (
            ((3, b"Concat"), [f"fire{fire}/expand1x1", f"fire{fire}/expand3x3"], "both"),
            ((18, b"ReLU"), [f"both{fire}"], "activated"),
        ):
            parts = field(4 if old else 1, b"layer") + (field(5, kind[0]) if old else field(2, kind[1]))
            parts += b"".join(field(bottom, name.encode()) for name in inputs)
            content += field(number, parts + field(top, f"{output}{fire}".encode()))
    assert weights.load(write("w.caffemodel", content)).arch == tiny_arch(geometry="caffe")


def test_wrong_caffemodels_are_refused(write):
    params = tiny_weights().params
    flat = flatten(params)
    blobs = caffemodel({"conv1": params["conv1"]})
    for content, message in (
        (b"\n\x04\xff\0\0\0", "no layer has blobs"),
        (caffemodel(without(params, "conv10")), "missing conv10/kernel, conv10/bias"),
        (caffemodel({**params, "fc6": params["conv10"]}), "surplus fc6/kernel, fc6/bias"),
        (caffemodel(params, extra=blobs), "occurs twice"),
        (caffemodel(params) + caffemodel(params, old=True), "old and of the new"),
        (caffemodel(unflatten({**flat, "conv1/bias": np.zeros(9)})), "wrong shape conv1/bias"),
        (caffemodel(params)[:-1], "truncated"),
        (b"\xa2\x06\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "truncated"),
        (b"\x0b" * 20, "wire type 3"),
        (b"\xff" * 20, "more than ten bytes"),
        (caffemodel(params) + b"\x02\0", "field number 0"),
        (caffemodel(params) + b"\x08\0" * (caffe_reader.MAX_FIELDS + 1), "has more than 200000 fields"),
        (caffemodel(unflatten({**flat, "conv1/bias": np.zeros((2, 2))})), r"\(2, 2\) are not the shapes of a kernel"),
    ):
        refused(write("w.caffemodel", content), message)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", ["conv10_flowers", "new_conv10", "my-classifier", "fire10/conv", "conv10/new"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_last_layer_that_was_renamed_for_fine_tuning_is_conv10(write, version, name, old):
    first = tiny_weights(version)
    flat = {key.replace("conv10", name): x for key, x in flatten(first.params).items()}
    again = weights.load(write("w.caffemodel", caffemodel(unflatten(flat), old=old, sums=4)))
    assert_same_params(again.params, first.params)
    assert again.provenance[caffe_reader.RENAMED] == name and again.provenance["format"] == "caffemodel"
    assert caffe_reader.RENAMED not in weights.load(write("w.caffemodel", caffemodel(first.params))).provenance


def test_only_a_layer_that_can_be_conv10_is_taken_for_it(write):
    first = tiny_weights()
    flat = {key.replace("conv10", "score"): x for key, x in flatten(first.params).items()}
    narrow = {**flat, "score/kernel": flat["score/kernel"][:, :, :-1]}
    wide = {**flat, "score/kernel": np.tile(flat["score/kernel"], (3, 3, 1, 1))}
    for wrong in (narrow, wide):
        refused(write("w.caffemodel", caffemodel(unflatten(wrong))), "missing conv10/kernel.*surplus score/kernel")
    two = {f"first/{part}": flat[f"score/{part}"] for part in ("kernel", "bias")} | flat
    refused(write("w.caffemodel", caffemodel(unflatten(two))), "surplus first/kernel")


def one_layer(*blobs):
    """A NetParameter with a layer of these blobs."""
    return field(100, field(1, b"conv1") + b"".join(field(7, content) for content in blobs))


@pytest.mark.parametrize("number", [1, 3])
def test_a_layer_has_a_kernel_and_a_bias_and_nothing_else(write, number):
    """A BatchNorm has three blobs, a convolution without bias one."""
    content = one_layer(*[blob(np.zeros((4, 3, 3, 3)))] * number)
    refused(write("w.caffemodel", content), f"layer conv1: {number} blobs instead of kernel and bias")


def test_what_protobuf_allows_is_read(write):
    """Data in several pieces, which are one after the other, and a negative number, which has ten bytes."""
    first = tiny_weights()
    whole = caffemodel({name: module for name, module in first.params.items() if name != "conv1"})
    flat = oihw(flatten(first.params))
    pieces = []
    for part in ("kernel", "bias"):
        x = flat[f"conv1/{part}"]
        start, end = (x.ravel()[piece].astype("<f4").tobytes() for piece in (slice(None, 2), slice(2, None)))
        shape = blob(x).removesuffix(field(5, start + end))
        pieces.append(shape + field(5, start) + field(5, end))
    content = one_layer(*pieces) + whole + field(1000, (1 << 64) - 1)
    assert_same_params(weights.load(write("w.caffemodel", content)).params, first.params)


# -- Deep Compression ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_deep_compression_of_any_table(version):
    first = sparse(tiny_weights(version))
    tensors, _ = net.decode(deep_compression(first.params), first.arch, channels=3, num_classes=CLASSES)
    assert_same_params(unflatten(tensors), first.params)


def published_net():
    """A v1.0 with 1000 classes and few non-zero weights."""
    rng = np.random.default_rng(0)
    flat = {}
    for name, shape in parameter_shapes(architecture.V1_0, channels=3, num_classes=1000).items():
        flat[name] = np.zeros(shape, np.float32)
        flat[name].flat[rng.integers(0, flat[name].size, 30)] = rng.integers(-9, 9, 30)
    return unflatten(flat)


def test_deep_compression_file(write):
    params = published_net()
    again = weights.load(write("w.net", deep_compression(params)))
    assert_same_params(again.params, params)
    assert again.arch == architecture.with_geometry(architecture.V1_0, "caffe")
    assert weights.load(write("w.net", deep_compression(params)), bypass="simple").arch != again.arch


def test_wrong_deep_compression_files_are_refused(write):
    content = deep_compression(published_net())
    for changed, message in (
        (content[:9], "truncated"),
        (content[:-1], "add up to"),
        (content + b"\0", "add up to"),
        (b"\xff\xff\xff\xff" + content[4:], "add up to"),
        (content[:104] + b"\0\0\x80\x3f" + content[108:], "codebook entry 0"),
        (content[:108] + b"\0\0\x80\x7f" * 255 + content[108 + 1020 :], "not finite"),
    ):
        refused(write("w.net", changed), message)
    first = sparse(tiny_weights())
    far = bytearray(deep_compression(first.params))
    far[-200:] = b"\xff" * 200
    with pytest.raises(UserError, match="outside the kernel"):
        net.decode(bytes(far), first.arch, channels=3, num_classes=CLASSES)


def test_the_last_weight_of_a_kernel_can_be_stored_and_none_behind_it():
    first = tiny_weights()
    flat = {name: np.zeros_like(x) for name, x in flatten(first.params).items()}
    assert flat["conv10/kernel"].size == 96
    flat["conv10/kernel"].transpose(3, 2, 0, 1).flat[[80, 95]] = 1
    content = bytearray(deep_compression(unflatten(flat)))
    tensors, _ = net.decode(bytes(content), first.arch, channels=3, num_classes=CLASSES)
    assert_same_params(unflatten(tensors), unflatten(flat))
    assert content[-1] == 14  # the gap between the two
    content[-1] = 15
    with pytest.raises(UserError, match="conv10: position 96 is outside the kernel of 96 weights"):
        net.decode(bytes(content), first.arch, channels=3, num_classes=CLASSES)
