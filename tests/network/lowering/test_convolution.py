"""`lowering.conv` is lax's: values and gradients, whatever form it takes and in how many parts its input comes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from against_lax import assert_values_and_gradients_equal, images, lax_conv
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from squeezenet_jax.network import lowering


def num_convolutions_and_products(f, *args):
    # A new function each time: of f itself jax would take the trace that it has, in another form.
    jaxpr = str(jax.make_jaxpr(lambda *args: f(*args))(*args))
    return jaxpr.count("conv_general_dilated["), jaxpr.count("dot_general[")


def axes_of_convolutions(program):
    """XLA gives Eigen those in the order b01f_01io->b01f; for others it writes scalar loops, ten times as slow."""
    text = program.compile(lowering.compiler_options()).as_text()
    return re.findall(r" convolution\(.*dim_labels=(\S+?),? ", text)


@pytest.mark.parametrize("parts", [(7,), (4, 3)])
@pytest.mark.parametrize("padding, pads", [("VALID", "VALID"), ("SAME", "SAME"), (0, "VALID"), (1, [(1, 1), (1, 1)])])
@pytest.mark.parametrize("kernel, strides", [(1, (1, 1)), (1, (2, 2)), (3, (1, 1)), (7, (2, 2))])
def test_convolution_of_parts_and_its_gradients_are_lax(kernel, strides, padding, pads, parts):
    ends = np.cumsum(parts)[:-1]

    def f(x, kernel, bias):
        x = lowering.concatenate(*jnp.split(x, ends, -1))
        return lowering.conv(x, kernel, bias, strides=strides, padding=padding)

    def reference(x, kernel, bias):
        return lax_conv(x, kernel, strides, pads) + bias

    assert_values_and_gradients_equal(f, reference, images(2, 9, 8, 7), images(kernel, kernel, 7, 5), images(5))


EIGEN, PATCHES, WINOGRAD = (1, 0), (0, 1), (0, 6)  # convolutions and products
FORMS = [
    ((2, 23, 27, 16), (3, 3, 16, 5), (1, 1), WINOGRAD),
    ((2, 27, 20, 17), (3, 3, 17, 5), (1, 1), WINOGRAD),
    ((2, 16, 17, 16), (3, 3, 16, 5), (1, 1), WINOGRAD),
    ((2, 17, 18, 16), (3, 3, 16, 5), (1, 1), WINOGRAD),
    ((200, 2, 3, 16), (3, 3, 16, 5), (1, 1), WINOGRAD),
    ((200, 3, 2, 16), (3, 3, 16, 5), (1, 1), WINOGRAD),
    ((600, 1, 1, 16), (3, 3, 16, 5), (1, 1), WINOGRAD),
    ((1, 13, 13, 64), (3, 3, 64, 5), (1, 1), EIGEN),
    ((2, 23, 27, 15), (3, 3, 15, 5), (1, 1), EIGEN),
    ((2, 23, 27, 16), (5, 5, 16, 5), (1, 1), EIGEN),
    ((2, 23, 27, 16), (3, 3, 16, 5), (2, 2), EIGEN),
    ((2, 23, 28, 3), (3, 3, 3, 8), (2, 2), PATCHES),
    ((2, 22, 27, 1), (5, 3, 1, 8), (2, 3), PATCHES),
    ((2, 22, 27, 1), (3, 5, 1, 8), (4, 2), PATCHES),
    ((2, 7, 6, 8), (1, 1, 8, 4), (2, 3), PATCHES),
    ((2, 1, 2, 3), (3, 3, 3, 8), (2, 2), PATCHES),
    ((2, 1, 9, 1), (5, 5, 1, 8), (2, 2), PATCHES),
    ((2, 23, 28, 3), (7, 7, 3, 8), (2, 2), EIGEN),
    ((2, 23, 28, 3), (3, 3, 3, 8), (1, 1), EIGEN),
]


@pytest.mark.parametrize(
    "padding", ["VALID", pytest.param("SAME", marks=pytest.mark.long), pytest.param(1, marks=pytest.mark.long)]
)
@pytest.mark.parametrize(("shape", "kernel_shape", "strides", "form"), FORMS)
def test_each_form_and_its_gradients_are_lax_to_rounding(shape, kernel_shape, strides, form, padding):
    def f(x, kernel, bias):
        return lowering.conv(x, kernel, bias, strides=strides, padding=padding)

    def reference(x, kernel, bias):
        pads = padding if isinstance(padding, str) else 2 * [(padding, padding)]
        return lax_conv(x, kernel, strides, pads) + bias

    x, kernel, bias = images(*shape), images(*kernel_shape), images(kernel_shape[-1])
    with lowering.inference(many_images=True):
        assert num_convolutions_and_products(lambda x, kernel: f(x, kernel, None), x, kernel) == form
        assert_values_and_gradients_equal(f, reference, x, kernel, bias)


@pytest.mark.parametrize(("strides", "channels", "form"), [((1, 1), 16, EIGEN), ((2, 2), 3, PATCHES)])
def test_bfloat16_has_its_rounding(strides, channels, form):
    """8 bits: Winograd's sums would lose some of them."""
    x, kernel = images(2, 23, 27, channels), images(3, 3, channels, 5)

    def f(x, kernel):
        return lowering.conv(x.astype("bfloat16"), kernel.astype("bfloat16"), None, strides=strides, padding="SAME")

    with lowering.inference(many_images=True):
        assert num_convolutions_and_products(f, x, kernel) == form
        y = jax.jit(f)(x, kernel)
    assert y.dtype == jnp.bfloat16
    expected = lax_conv(x, kernel, strides, "SAME")
    np.testing.assert_allclose(y.astype("float32"), expected, atol=1e-2 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(
    ("shape", "features", "training"),
    [
        ((8, 54, 54, 16), 64, WINOGRAD),  # fires of 8 images of 224 px: v1.0's second, v1.1's sixth
        ((8, 13, 13, 48), 192, WINOGRAD),
        ((32, 16, 16, 16), 64, EIGEN),  # the main job's fourth
    ],
)
def test_training_has_winograd_from_a_size_on_and_short_inference_never(shape, features, training):
    def f(x, kernel):
        return lowering.conv(x, kernel, None, strides=(1, 1), padding="SAME")

    x, kernel = images(*shape), images(3, 3, shape[-1], features)
    assert num_convolutions_and_products(f, x, kernel) == training
    for many_images, form in ((True, WINOGRAD), (False, EIGEN)):
        with lowering.inference(many_images=many_images):
            assert num_convolutions_and_products(f, x, kernel) == form


def test_training_has_patches_for_a_stem():
    def f(x, kernel):
        return lowering.conv(x, kernel, None, strides=(2, 2), padding="VALID")

    assert num_convolutions_and_products(f, images(8, 15, 15, 3), images(3, 3, 3, 64)) == PATCHES


@pytest.mark.parametrize(
    ("shape", "kernel_shape", "strides", "form"),
    [((2, 12, 13, 16), (3, 3, 16, 5), (1, 1), WINOGRAD), ((2, 12, 13, 3), (3, 3, 3, 5), (2, 2), PATCHES)],
)
def test_forms_of_a_sharded_batch_are_the_same_to_rounding(shape, kernel_shape, strides, form):
    def f(x, kernel, bias):
        return lowering.conv(x, kernel, bias, strides=strides, padding="SAME")

    def gradients(x, kernel, bias):
        return jax.grad(lambda *args: (f(*args) ** 2).sum(), argnums=(0, 1, 2))(x, kernel, bias)

    x, kernel, bias = images(jax.device_count() * shape[0], *shape[1:]), images(*kernel_shape), images(5)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    with lowering.inference(many_images=True):
        assert num_convolutions_and_products(lambda x, kernel: f(x, kernel, None), x, kernel) == form
        compiled = jax.jit(gradients).lower(sharded, kernel, bias).compile(lowering.compiler_options())
        whole = jax.jit(gradients)(x, kernel, bias)
    communication = set(re.findall(r"all-\w+|collective-\w+|reduce-scatter", compiled.as_text()))
    assert communication == {"all-reduce"}
    for one, many in zip(whole, compiled(sharded, kernel, bias), strict=True):
        np.testing.assert_allclose(one, many, atol=1e-5 * float(jnp.abs(one).max()))


@pytest.mark.parametrize("kernel, strides, padding", [(3, (1, 1), "SAME"), (7, (2, 2), "VALID"), (3, (2, 2), 0)])
def test_in_a_loop_too_eigen_computes_a_convolution_and_its_gradients(kernel, strides, padding):
    def gradients(x, kernel):
        def loss(x, kernel):
            return (lowering.conv(x, kernel, None, strides=strides, padding=padding) ** 2).sum()

        return lax.map(lambda x: jax.grad(loss, argnums=(0, 1))(x, kernel), x)

    program = jax.jit(gradients).lower(images(2, 4, 27, 27, 8), images(kernel, kernel, 8, 16))
    assert axes_of_convolutions(program) == 3 * ["b01f_01io->b01f"]


def test_a_1x1_convolution_is_a_product_with_the_narrow_operand_first():
    def loss(kernel, padding):
        return lowering.conv(images(2, 5, 5, 6), kernel, None, strides=(1, 1), padding=padding).sum()

    for features, swapped in ((9, False), (3, True)):
        for padding in (0, 1):  # 1: conv10 of the published Caffe models
            jaxpr = str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(images(1, 1, 6, features), padding))
            assert "conv_general_dilated" not in jaxpr
            assert ("optimization_barrier" in jaxpr) == swapped


def test_off_the_cpu_convolutions_are_lax_operations_of_whole_arrays(monkeypatch):
    monkeypatch.setattr(lowering, "_on_cpu", lambda: False)

    def f(x, kernel, bias):
        return lowering.conv(lowering.concatenate(x, x), kernel, bias, strides=(1, 1), padding="SAME")

    equations = jax.make_jaxpr(f)(images(2, 5, 5, 2), images(1, 1, 4, 3), images(3)).eqns
    names = [equation.primitive.name for equation in equations]
    assert names == ["concatenate", "conv_general_dilated", "broadcast_in_dim", "add"]
