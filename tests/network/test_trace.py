"""The rows of `trace` say everything that is needed to compute the network, and each says it right."""

import contextlib
import dataclasses
import doctest
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from squeezenet_jax.network import architecture, memory, model, trace
from squeezenet_jax.network.architecture import FireSpec, StemSpec, build
from squeezenet_jax.network.model import SqueezeNet
from squeezenet_jax.network.trace import IMAGE, Layer, count
from squeezenet_jax.settings import ModelSettings
from squeezenet_jax.system import fields, nested
from squeezenet_jax.system.errors import UserError

# Clevert et al., arXiv 1511.07289; Maas et al. 2013; Ramachandran et al., arXiv 1710.05941.
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: jnp.where(x > 0, x, 0),
    "elu": lambda x: jnp.where(x > 0, x, jnp.exp(x) - 1),
    "leaky_relu": lambda x: jnp.where(x > 0, x, 0.01 * x),
    "swish": lambda x: x / (1 + jnp.exp(-x)),
}


def normalize(y, layer, tensors):
    """As an evaluation does: by the averages of training, or by the groups of one example."""
    if layer.norm == "batch":
        mean, var = tensors[f"{layer.name}/mean"], tensors[f"{layer.name}/var"]
    else:
        groups = jnp.reshape(y, (*y.shape[:3], -1, architecture.group_size(y.shape[-1])))
        mean, var = (
            jnp.repeat(f(groups, (1, 2, 4), keepdims=True)[..., 0], groups.shape[-1], axis=-1)
            for f in (jnp.mean, jnp.var)
        )
    return tensors[f"{layer.name}/scale"] * (y - mean) / jnp.sqrt(var + 1e-5)


def compute(layer, inputs, tensors):
    """One row in plain lax, knowing nothing but the row."""
    borders = (layer.borders, layer.borders)
    if layer.kind == "conv":
        kernel, strides = tensors[f"{layer.name}/kernel"], (layer.stride, layer.stride)
        y = lax.conv_general_dilated(*inputs, kernel, strides, borders, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        if layer.norm != "none":
            y = normalize(y, layer, tensors)
        y = y + tensors[f"{layer.name}/bias"]
    elif layer.kind == "max_pool":
        window, strides = (1, layer.kernel, layer.kernel, 1), (1, layer.stride, layer.stride, 1)
        y = lax.reduce_window(*inputs, -jnp.inf, lax.max, window, strides, ((0, 0), *borders, (0, 0)))
    elif layer.kind == "concat":
        y = jnp.concatenate(inputs, axis=-1)
    elif layer.kind == "add":
        y = sum(inputs)
    else:
        assert layer.kind == "mean"
        y = jnp.mean(*inputs, axis=(1, 2), keepdims=True)
    assert y.shape[1:] == layer.shape
    channels = [x.shape[-1] for x in inputs]
    assert {layer.in_channels} == ({sum(channels)} if layer.kind == "concat" else set(channels))
    return ACTIVATIONS[layer.activation](y)


def logits_of_rows(layers, image, variables):
    values, tensors = {IMAGE: image}, {}
    for collection in variables.values():
        tensors |= nested.flatten(collection, "/")
    for layer in layers:
        values[layer.name] = compute(layer, [values[name] for name in layer.inputs], tensors)
    return values[layers[-1].name][:, 0, 0]


def same_group_twice():
    group = (FireSpec(4, 8, 8), FireSpec(4, 8, 8, "identity"))
    return architecture.Architecture(StemSpec(8, 3, 2), (group, group))


ARCHITECTURES = {
    **{
        f"{version} {bypass} {geometry}": build(version, bypass=bypass, geometry=geometry, width=0.125)
        for version, bypass, geometry in [
            ("v1.0", "complex", "caffe"),
            ("v1.1", "simple", "same"),
            ("v1.0", "none", "torchvision"),
        ]
    },
    "no ReLU behind bypasses and conv10": dataclasses.replace(
        build("v1.1", bypass="complex", stem="small", width=0.125), bypass_relu=False, conv10_relu=False
    ),
    "the same group twice": same_group_twice(),
    "batch norm": build("v1.0", bypass="complex", norm="batch", activation="swish", width=0.125),
    "group norm": build("v1.1", bypass="simple", norm="group", width=0.3),
    "swish, none behind squeeze": build("v1.1", activation="swish", squeeze_activation=False, width=0.125),
}


def every_setting():
    """A network for each value of each setting of it, also of one that somebody adds: what a number has is halved."""
    plain = ModelSettings(stem="small", width=0.125, bypass="complex")
    for row in fields.rows(ModelSettings):
        default = getattr(plain, row.name)
        values = row.rule.choices or ((not default,) if isinstance(default, bool) else ())
        if isinstance(default, float | int) and not isinstance(default, bool):
            values = (type(default)(default / 2 or 1),)
        for value in values:
            with contextlib.suppress(UserError):  # of a setting that needs another
                arch = dataclasses.replace(plain, **{row.name: value}).architecture()
                if arch != plain.architecture():
                    yield f"{row.name} {value}", arch


ARCHITECTURES |= dict(every_setting())


def test_networks_of_all_settings_are_compared():
    known = {
        "version v1.1",
        "stem card",
        "norm batch",
        "norm group",
        "bypass none",
        "bypass simple",
        "activation swish",
    }
    known |= {"geometry caffe", "bypass_relu False", "conv10_relu False", "squeeze_activation False", "width 0.0625"}
    assert known <= set(ARCHITECTURES)


@pytest.mark.long
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_computed_one_after_another_are_the_model(name):
    arch = ARCHITECTURES[name]
    image = jax.random.normal(jax.random.key(0), (2, 38, 38, 3))  # 38: pools and SAME have borders, after only
    net = SqueezeNet(arch, 5, "he_uniform")
    variables = jax.jit(net.init)(jax.random.key(1), image)
    rng = np.random.default_rng(2)  # biases and averages too
    variables = jax.tree.map(lambda leaf: leaf + rng.uniform(0.02, 0.08, leaf.shape[-1]).astype("f4"), variables)
    layers = trace.trace(arch, image_size=38, num_classes=5)
    logits = jax.jit(lambda variables: logits_of_rows(layers, image, variables))(variables)
    expected = jax.jit(net.apply)(variables, image)
    assert np.ptp(expected, axis=0).max() > 1e-3
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_rows_of_a_fire_with_a_complex_bypass():
    layers = {
        layer.name: layer for layer in trace.trace(build("v1.0", bypass="complex"), image_size=224, num_classes=9)
    }
    assert [dataclasses.replace(layers[f"fire2/{name}"]) for name in ("squeeze1x1", "expand3x3", "concat", "sum")] == [
        Layer("fire2/squeeze1x1", "conv", ("pool1",), 96, (55, 55, 16), activation="relu"),
        Layer("fire2/expand3x3", "conv", ("fire2/squeeze1x1",), 16, (55, 55, 64), 3, 1, (1, 1), "relu"),
        Layer("fire2/concat", "concat", ("fire2/expand1x1", "fire2/expand3x3"), 128, (55, 55, 128)),
        Layer("fire2/sum", "add", ("fire2/concat", "fire2/bypass"), 128, (55, 55, 128)),
    ]
    assert layers["fire3/sum"].inputs == ("fire3/concat", "fire2/sum")
    assert layers["fire3/squeeze1x1"].inputs == ("fire2/sum",)


def test_numbers_of_a_row():
    conv1 = trace.trace(build("v1.0", geometry="caffe"), image_size=227, num_classes=9)[0]
    assert conv1.parameter_shapes == {"kernel": (7, 7, 3, 96), "bias": (96,)}
    assert (conv1.params, conv1.macs, conv1.activation_size) == (14_208, 111 * 111 * 14_112, 111 * 111 * 96)


@pytest.mark.parametrize(("version", "bypass"), list(itertools.product(architecture.VERSIONS, architecture.BYPASSES)))
def test_every_layer_stands_after_those_that_it_reads_and_is_read_itself(version, bypass):
    layers = trace.trace(build(version, bypass=bypass), image_size=224, num_classes=9)
    seen = {IMAGE}
    for layer in layers:
        assert set(layer.inputs) <= seen and layer.name not in seen
        seen.add(layer.name)
    assert {name for layer in layers for name in layer.inputs} == seen - {layers[-1].name}
    assert count(layers)[0] == sum(layer.params for layer in layers if layer.kind == "conv")


@pytest.mark.parametrize("module", [architecture, trace, memory, model], ids=lambda module: module.__name__)
def test_examples_of_the_docstrings_hold(module):
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0 and outcome.failed == 0
