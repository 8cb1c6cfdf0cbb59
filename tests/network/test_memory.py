"""The memory plan: what lives at once, against numbers by hand."""

import pytest

from squeezenet_jax.network.architecture import build
from squeezenet_jax.network.memory import Peak, peak_activations, weight_bytes
from squeezenet_jax.network.trace import Layer, trace


def conv(name, source, size, channels, in_channels=1):
    return Layer(name, "conv", (source,), in_channels, (size, size, channels))


def test_an_example_by_hand():
    """4 x 4 px: a fire with an identity bypass, a squeeze of one map and expands of two each."""
    rows = [
        conv("a", "image", 4, 4),  # 16 + 64
        conv("b", "a", 4, 1),  # 64 + 16
        conv("c", "b", 4, 2),  # a, which the sum reads, 64; b 16; the concatenation's 64
        conv("d", "b", 4, 2),  # the same
        Layer("cd", "concat", ("c", "d"), 4, (4, 4, 4)),  # a and cd, nothing else: 128
        Layer("sum", "add", ("cd", "a"), 4, (4, 4, 4)),  # written over cd: 128
        Layer("mean", "mean", ("sum",), 4, (1, 1, 4), 4),  # 64 + 4
    ]
    assert peak_activations(rows, 4) == Peak(144, "c")
    assert peak_activations(rows[:2], 4) == Peak(80, "a")
    # Somebody reads cd after the sum: then it has memory of its own, and three maps live at once.
    later = [*rows[:6], Layer("again", "add", ("cd", "sum"), 4, (4, 4, 4))]
    assert peak_activations(later, 4) == Peak(192, "sum")


@pytest.mark.parametrize(
    ("version", "geometry", "size", "bypass", "expected"),
    [
        # conv1's map and pool1's, unpadded, rounded up: 111^2 x 96 + 55^2 x 96, 113^2 x 64 + 56^2 x 64
        ("v1.0", "caffe", 227, "none", Peak(1_182_816 + 290_400, "pool1")),
        ("v1.1", "caffe", 227, "none", Peak(817_216 + 200_704, "pool1")),
        # 109^2 x 96 + 54^2 x 96, 111^2 x 64 + 55^2 x 64
        ("v1.0", "torchvision", 224, "none", Peak(1_140_576 + 279_936, "pool1")),
        ("v1.1", "torchvision", 224, "none", Peak(788_544 + 193_600, "pool1")),
        # Fire 4 beside a convolution of its input, 55^2 x (128 + 256 + 256); the pool was the peak before.
        ("v1.0", "caffe", 227, "complex", Peak(1_936_000, "fire4/bypass")),
        ("v1.0", "caffe", 227, "simple", Peak(1_473_216, "pool1")),
    ],
)
def test_the_published_networks(version, geometry, size, bypass, expected):
    layers = trace(build(version, geometry=geometry, bypass=bypass), image_size=size, num_classes=1000)
    peak = peak_activations(layers, size)
    assert peak == expected
    assert (peak.bytes("float32"), peak.bytes("int8")) == (4 * expected.values, expected.values)


def test_bytes_of_weights():
    layers = trace(build("v1.0"), image_size=224, num_classes=1000)
    # 1,248,424 parameters, of which biases: 96 and 1,000 of conv1 and conv10, and each fire's squeeze and expands
    filters = 96 + 1000 + 2 * (16 + 128 + 32 + 256 + 48 + 384 + 64 + 512)
    assert weight_bytes(layers, "float32") == 4 * 1_248_424
    assert weight_bytes(layers, "int8") == (1_248_424 - filters) + 8 * filters
    batch, group = (trace(build("v1.0", norm=norm), image_size=224, num_classes=1000) for norm in ("batch", "group"))
    assert weight_bytes(batch, "int8") == weight_bytes(layers, "int8")
    assert weight_bytes(group, "int8") == weight_bytes(layers, "int8") + 4 * (filters - 1000)  # conv10 has no norm
