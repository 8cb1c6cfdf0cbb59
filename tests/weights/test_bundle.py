"""`Weights` holds only what fits together, and its description survives JSON exactly."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weight_files import CLASSES, tiny_arch, tiny_weights

from squeezenet_jax.network import architecture
from squeezenet_jax.network.model import SqueezeNet
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import (
    PREPROCESSINGS,
    Preprocessing,
    Weights,
    flatten,
    listing,
    parameter_shapes,
    unflatten,
)
from squeezenet_jax.weights.formats import metadata

VARIANTS = list(itertools.product(architecture.VERSIONS, architecture.BYPASSES, architecture.GEOMETRIES))


@pytest.mark.parametrize(("version", "bypass"), list(itertools.product(architecture.VERSIONS, architecture.BYPASSES)))
def test_parameter_shapes_are_those_of_the_model(version, bypass):
    arch = architecture.build(version, bypass=bypass)
    model = SqueezeNet(arch, 10)
    image = jnp.zeros((1, 64, 64, 3))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), image))["params"]
    shapes = parameter_shapes(arch, channels=3, num_classes=10)
    assert shapes == {name: x.shape for name, x in flatten(params).items()}


@pytest.mark.parametrize(("version", "bypass", "geometry"), VARIANTS)
def test_description_survives_json(version, bypass, geometry):
    weights = tiny_weights(version, bypass, geometry, labels=("a", "b\n", "ç"), provenance={"source": "x"})
    description = metadata.parse(metadata.describe(weights))
    again = description.with_params(weights.params)
    for field in dataclasses.fields(weights):
        assert getattr(again, field.name) == getattr(weights, field.name), field.name


def test_flatten_and_unflatten_are_inverse():
    params = tiny_weights().params
    assert jax.tree.structure(unflatten(flatten(params))) == jax.tree.structure(params)


def changed(weights, name, value):
    flat = flatten(weights.params)
    return dataclasses.replace(
        weights, params=unflatten({k: v for k, v in {**flat, name: value}.items() if v is not None})
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("conv10/bias", None, "missing conv10/bias"),
        ("conv11/bias", np.zeros(3, np.float32), "surplus conv11/bias"),
        ("conv10/bias", np.zeros(4, np.float32), r"wrong shape conv10/bias \(4,\) instead of \(3,\)"),
        ("conv10/bias", np.zeros(3, np.float64), "must be float32"),
        ("conv10/bias", np.array([0, np.nan, 0], np.float32), "not finite"),
        ("conv10/bias", np.array([0, np.inf, 0], np.float32), "not finite"),
    ],
)
def test_wrong_tensors_are_refused(name, value, message):
    with pytest.raises(UserError, match=message):
        changed(tiny_weights(), name, value)


def test_a_long_list_of_names_is_cut_and_printable():
    with pytest.raises(UserError) as caught:
        changed(tiny_weights(), "evil\x1b[2J\nname" + "x" * 500, np.zeros(1))
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "fields",
    [
        {"labels": ("a",)},
        {"channels": 1},
        {"num_classes": 4},
        {"num_classes": 0},
        {"arch": tiny_arch(bypass="complex")},
    ],
)
def test_parts_that_do_not_fit_are_refused(fields):
    with pytest.raises(UserError):
        dataclasses.replace(tiny_weights(), **fields)


def test_a_network_takes_the_channels_that_its_preprocessing_gives_and_images_as_large():
    grey = tiny_weights(channels=1).preprocessing
    with pytest.raises(UserError, match="preprocessing caffe gives 1 channels, the network takes 3"):
        dataclasses.replace(tiny_weights(), preprocessing=grey)
    with pytest.raises(UserError):
        dataclasses.replace(tiny_weights(), preprocessing=dataclasses.replace(PREPROCESSINGS["caffe"], crop=1))


@pytest.mark.parametrize(
    "fields",
    [
        {"crop": 300},
        {"crop": 0},
        {"resize": 5000},
        {"std": (0.0,)},
        {"std": (float("inf"),)},
        {"mean": (1.0, 2.0)},
        {"mean": (float("nan"),)},
        {"scale": float("nan")},
        {"channel_order": "L"},
    ],
)
def test_impossible_preprocessing_is_refused(fields):
    with pytest.raises(UserError, match="preprocessing"):
        dataclasses.replace(PREPROCESSINGS["caffe"], **fields)


def leaves(value, path=()):
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))
    elif path[0] not in ("labels", "provenance"):
        yield path


def test_every_wrongly_typed_or_missing_metadata_field_is_refused():
    text = metadata.describe(tiny_weights())
    for path in leaves(json.loads(text)):
        for wrong in (None, "x", [1], {}, -1, 10**400, 1e308):
            value = json.loads(text)
            node = value
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = wrong
            try:
                metadata.parse(json.dumps(value)).with_params(tiny_weights().params)
            except UserError as error:
                assert "\n" not in str(error)
            else:
                # Free texts and numbers that change nothing about the tensors' shapes.
                assert path[-1] in ("name", "scale") or "mean" in path or "std" in path, (path, wrong)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "NaN", "[" * 100_000, '{"version": 2}', '{"a": 1, "a": 2}', "1" * 5000]
)
def test_metadata_that_are_not_a_description_are_refused(text):
    with pytest.raises(UserError) as caught:
        metadata.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"version": 1,', '"version": 1, "version": 1,', "a key occurs twice"),
        ('"scale": 1.0,', '"scale": NaN,', "NaN is not a number"),
        ('"scale": 1.0,', '"scale": -Infinity,', "-Infinity is not a number"),
    ],
)
def test_what_only_pythons_json_takes_is_refused(before, after, message):
    text = metadata.describe(tiny_weights())
    assert text.count(before) == 1
    with pytest.raises(UserError, match=f"metadata: not valid JSON .{message}"):
        metadata.parse(text.replace(before, after))


def test_a_table_that_would_need_long_computations_is_refused():
    groups = tiny_arch().groups
    for arch in (
        dataclasses.replace(tiny_arch(), groups=groups * 100),
        dataclasses.replace(tiny_arch(), groups=(groups[0] * 1000, *groups[1:])),
        dataclasses.replace(tiny_arch(), groups=()),
        dataclasses.replace(tiny_arch(), stem=architecture.StemSpec(1 << 60, 3, 2)),
        dataclasses.replace(tiny_arch(), conv10_padding=1 << 60),
        dataclasses.replace(tiny_arch(), caffe_conv10_padding=1 << 60),
        dataclasses.replace(tiny_arch(), dropout=1),
        dataclasses.replace(tiny_arch(), stem=architecture.StemSpec(4, 3, 0)),
    ):
        with pytest.raises(UserError, match="architecture"):
            parameter_shapes(arch, channels=3, num_classes=CLASSES)
    with pytest.raises(UserError, match="1000001 classes"):
        parameter_shapes(tiny_arch(), channels=3, num_classes=1_000_001)


def test_a_listing_counts_what_it_leaves_out():
    assert listing("abcdef") == "a, b, c, d, e, f"
    assert listing("abcdefgh") == "a, b, c, d, e, f and 2 more"


def test_preprocessing_is_what_the_publishers_document():
    assert PREPROCESSINGS["caffe"].channel_order == "BGR"
    assert PREPROCESSINGS["torchvision"] == Preprocessing(
        "torchvision", 256, "short_side", 224, "RGB", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )


def test_negative_variances_are_refused():
    arch = architecture.build("v1.1", width=0.125, norm="batch")
    shapes = parameter_shapes(arch, channels=3, num_classes=3)
    params = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    params["fire2/squeeze1x1/var"] -= 2
    with pytest.raises(UserError, match="fire2/squeeze1x1/var: has negative variances"):
        Weights(arch, unflatten(params), 3, 3, PREPROCESSINGS["caffe"])
