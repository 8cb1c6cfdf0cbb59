"""`lowering.conv` is lax's: values and gradients, whatever form it takes and in how many parts its input comes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from against_lax import assert_values_and_gradients_equal, images, lax_conv
from jax import lax

from squeezenet_jax import lowering


def num_convolutions(f, *args):
    # A new function each time: of f itself jax would take the trace that it has, in another form.
    return str(jax.make_jaxpr(lambda *args: f(*args))(*args)).count("conv_general_dilated[")


def axes_of_convolutions(program):
    """XLA gives Eigen those in the order b01f_01io->b01f; for others it writes scalar loops, ten times as slow."""
    text = program.compile(lowering.compiler_options()).as_text()
    return re.findall(r" convolution\(.*dim_labels=(\S+?),? ", text)


@pytest.mark.parametrize("parts", [(7,), (4, 3)])
@pytest.mark.parametrize("padding, pads", [("VALID", "VALID"), ("SAME", "SAME"), (0, "VALID"), (1, [(1, 1), (1, 1)])])
@pytest.mark.parametrize("kernel, strides", [(1, (1, 1)), (1, (2, 2)), (3, (1, 1)), (7, (2, 2))])
def test_convolution_of_parts_and_its_gradients_are_lax(kernel, strides, padding, pads, parts):
    ends = np.cumsum(parts)[:-1]

    def f(x, kernel):
        return lowering.conv(lowering.concatenate(*jnp.split(x, ends, -1)), kernel, strides=strides, padding=padding)

    x, kernel = images(2, 9, 8, 7), images(kernel, kernel, 7, 5)
    assert_values_and_gradients_equal(f, lambda x, kernel: lax_conv(x, kernel, strides, pads), x, kernel)


@pytest.mark.parametrize("kernel, strides, padding", [(3, (1, 1), "SAME"), (7, (2, 2), "VALID"), (3, (2, 2), 0)])
def test_in_a_loop_too_eigen_computes_a_convolution_and_its_gradients(kernel, strides, padding):
    def gradients(x, kernel):
        def loss(x, kernel):
            return (lowering.conv(x, kernel, strides=strides, padding=padding) ** 2).sum()

        return lax.map(lambda x: jax.grad(loss, argnums=(0, 1))(x, kernel), x)

    program = jax.jit(gradients).lower(images(2, 4, 27, 27, 8), images(kernel, kernel, 8, 16))
    assert axes_of_convolutions(program) == 3 * ["b01f_01io->b01f"]


@pytest.mark.parametrize("padding", ["VALID", "SAME", 1])
@pytest.mark.parametrize(
    ("shape", "kernel_shape", "strides", "convolutions"),
    [
        ((2, 23, 27, 16), (3, 3, 16, 5), (1, 1), 6),  # Winograd's
        ((2, 27, 20, 17), (3, 3, 17, 5), (1, 1), 6),
        ((400, 2, 3, 16), (3, 3, 16, 5), (1, 1), 6),
        ((400, 3, 2, 16), (3, 3, 16, 5), (1, 1), 6),
        ((1, 13, 13, 64), (3, 3, 64, 5), (1, 1), 1),
        ((2, 23, 27, 15), (3, 3, 15, 5), (1, 1), 1),
        ((2, 23, 27, 16), (5, 5, 16, 5), (1, 1), 1),
        ((2, 23, 27, 16), (3, 3, 16, 5), (2, 2), 1),
        ((2, 23, 28, 3), (3, 3, 3, 8), (2, 2), 0),  # patches
        ((2, 22, 27, 1), (5, 3, 1, 8), (2, 3), 0),
        ((2, 1, 2, 3), (3, 3, 3, 8), (2, 2), 0),
        ((2, 23, 28, 3), (7, 7, 3, 8), (2, 2), 1),
        ((2, 23, 28, 3), (3, 3, 3, 8), (1, 1), 1),
    ],
)
def test_a_convolution_for_inference_is_lax_to_rounding(shape, kernel_shape, strides, convolutions, padding):
    def f(x, kernel):
        return lowering.conv(x, kernel, strides=strides, padding=padding)

    x, kernel = images(*shape), images(*kernel_shape)
    expected = lax_conv(x, kernel, strides, padding if isinstance(padding, str) else 2 * [(padding, padding)])
    with lowering.inference():
        assert num_convolutions(f, x, kernel) == convolutions
        np.testing.assert_allclose(jax.jit(f)(x, kernel), expected, atol=3e-6 * float(jnp.abs(expected).max(initial=1)))
    assert num_convolutions(f, x, kernel) == 1


@pytest.mark.parametrize(("strides", "channels", "convolutions"), [((1, 1), 16, 1), ((2, 2), 3, 0)])
def test_inference_in_bfloat16_has_its_rounding(strides, channels, convolutions):
    """8 bits: Winograd's sums would lose some of them."""
    x, kernel = images(2, 23, 27, channels), images(3, 3, channels, 5)

    def f(x, kernel):
        return lowering.conv(x.astype("bfloat16"), kernel.astype("bfloat16"), strides=strides, padding="SAME")

    with lowering.inference():
        assert num_convolutions(f, x, kernel) == convolutions
        y = jax.jit(f)(x, kernel)
    assert y.dtype == jnp.bfloat16
    expected = lax_conv(x, kernel, strides, "SAME")
    np.testing.assert_allclose(y.astype("float32"), expected, atol=1e-2 * float(jnp.abs(expected).max()))


def test_in_a_loop_too_eigen_computes_the_convolutions_for_inference():
    def features(x, kernel):
        return lax.map(lambda x: lowering.conv(x, kernel, strides=(1, 1), padding="SAME"), x)

    with lowering.inference():
        program = jax.jit(features).lower(images(2, 4, 27, 27, 16), images(3, 3, 16, 32))
    assert axes_of_convolutions(program) == 6 * ["b01f_01io->b01f"]


def test_a_1x1_convolution_is_a_product_with_the_narrow_operand_first():
    def loss(kernel, padding):
        return lowering.conv(images(2, 5, 5, 6), kernel, strides=(1, 1), padding=padding).sum()

    for features, swapped in ((9, False), (3, True)):
        for padding in (0, 1):  # 1: conv10 of the published Caffe models
            jaxpr = str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(images(1, 1, 6, features), padding))
            assert "conv_general_dilated" not in jaxpr
            assert ("optimization_barrier" in jaxpr) == swapped


def test_off_the_cpu_convolutions_are_lax_operations_of_whole_arrays(monkeypatch):
    monkeypatch.setattr(lowering, "_on_cpu", lambda: False)

    def f(x, kernel, bias):
        y = lowering.conv(lowering.concatenate(x, x), kernel, strides=(1, 1), padding="SAME")
        return lowering.add_bias(y, bias)

    equations = jax.make_jaxpr(f)(images(2, 5, 5, 2), images(1, 1, 4, 3), images(3)).eqns
    names = [equation.primitive.name for equation in equations]
    assert names == ["concatenate", "conv_general_dilated", "broadcast_in_dim", "add"]
