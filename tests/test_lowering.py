"""`lowering` computes what lax computes: values and gradients, for odd and even sizes, both roundings and ties."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from squeezenet_jax import lowering

SIZES = [(2, 5), (3, 4), (7, 8), (8, 5)]


def reference_pool(x, *, ceil):
    pads = [(0, (n - 3) % 2 if ceil else 0) for n in x.shape[1:3]]
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), *pads, (0, 0)])


def pooled_and_gradient(pool, x):
    """pool(x) and the gradient of x for one random cotangent."""
    y, pullback = jax.vjp(pool, x)
    return y, pullback(jnp.asarray(np.random.default_rng(2).normal(size=y.shape), y.dtype))[0]


def images(*shape, dtype="float32"):
    """Normal noise in the first half of the batch; in the rest a ReLU's output on three levels: many ties."""
    x = np.random.default_rng(1).normal(size=shape)
    half = len(x) // 2
    x[half:] = np.clip(np.round(2 * x[half:]), 0, 2)
    return jnp.asarray(x, dtype)


def assert_pools_equal(x, ceil):
    y, gradient = jax.jit(lambda x: pooled_and_gradient(lambda x: lowering.max_pool(x, ceil=ceil), x))(x)
    expected_y, expected = jax.jit(lambda x: pooled_and_gradient(lambda x: reference_pool(x, ceil=ceil), x))(x)
    np.testing.assert_array_equal(y, expected_y)
    assert y.dtype == gradient.dtype == x.dtype
    tolerance = 5e-2 if x.dtype == jnp.bfloat16 else 1e-6  # up to four windows' gradients are summed, in another order
    np.testing.assert_allclose(gradient.astype("float32"), expected.astype("float32"), atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_pool_and_its_gradient_are_lax(size, ceil, dtype):
    assert_pools_equal(images(4, *size, 3, dtype=dtype), ceil)


def test_tied_gradient_goes_to_the_first_maximum_in_row_major_order():
    gradient = jax.jit(jax.grad(lambda x: lowering.max_pool(x, ceil=False).sum()))(jnp.zeros((1, 3, 3, 1)))
    assert gradient.ravel().tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0]
    x = jnp.zeros((1, 3, 3, 1)).at[0, 2, 0, 0].set(1).at[0, 1, 2, 0].set(1)
    gradient = jax.jit(jax.grad(lambda x: lowering.max_pool(x, ceil=False).sum()))(x)
    assert gradient.ravel().tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0]


def test_pool_keeps_nan_wherever_it_is():
    x = jnp.where(jnp.eye(9, dtype=bool), jnp.nan, jnp.arange(9.0)).reshape(9, 3, 3, 1)
    assert jnp.isnan(lowering.max_pool(x, ceil=False)).all()


def test_pool_keeps_infinity():
    x = jnp.full((1, 4, 4, 1), -jnp.inf)
    assert (jax.jit(lambda x: lowering.max_pool(x, ceil=True))(x) == -jnp.inf).all()


def test_pool_of_less_than_a_window_is_empty(monkeypatch):
    for on_cpu in (True, False):
        monkeypatch.setattr(lowering, "_on_cpu", lambda on_cpu=on_cpu: on_cpu)
        assert lowering.max_pool(jnp.zeros((1, 2, 5, 1)), ceil=False).shape[1:] == (0, 2, 1)


def test_pool_and_its_gradient_commute_with_vmap():
    x = images(6, 7, 8, 4)

    def gradient(x, pool):
        return jax.grad(lambda x: (pool(x, ceil=True) ** 2).sum())(x)

    parts = x.reshape(3, 2, 7, 8, 4)
    pooled = jax.vmap(lambda x: lowering.max_pool(x, ceil=True))(parts)
    np.testing.assert_array_equal(pooled.reshape(6, 3, 4, 4), reference_pool(x, ceil=True))
    gradients = jax.vmap(lambda x: gradient(x, lowering.max_pool))(parts)
    np.testing.assert_allclose(gradients.reshape(x.shape), gradient(x, reference_pool), rtol=1e-6)


def test_pool_of_a_sharded_batch_is_bitwise_the_same():
    x = images(2 * jax.device_count(), 7, 8, 4)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    f = jax.jit(lambda x: pooled_and_gradient(lambda x: lowering.max_pool(x, ceil=False), x))
    for one, many in zip(f(x), f(jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))), strict=True):
        np.testing.assert_array_equal(one, many)


def test_pool_off_the_cpu_is_one_lax_operation(monkeypatch):
    monkeypatch.setattr(lowering, "_on_cpu", lambda: False)
    for ceil, size in itertools.product((False, True), SIZES[1:]):
        assert_pools_equal(images(4, *size, 3), ceil)
    equations = jax.make_jaxpr(lambda x: lowering.max_pool(x, ceil=False))(images(1, 7, 7, 1)).eqns
    assert [e.primitive.name for e in equations] == ["reduce_window_max"]
    assert lowering.compiler_options() == {}


KERNEL_1, KERNEL_3 = (np.ones((n, n, 3, 2), np.float32) for n in (1, 3))


def lax_conv(x, kernel, strides=(1, 1), padding="VALID"):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def assert_values_and_gradients_equal(f, reference, *args):
    """In float32, to rounding, under a random cotangent."""
    (y, pullback), (expected, expected_pullback) = jax.vjp(jax.jit(f), *args), jax.vjp(jax.jit(reference), *args)
    cotangent = jnp.asarray(np.random.default_rng(3).normal(size=expected.shape), expected.dtype)
    outcomes = zip((y, *pullback(cotangent)), (expected, *expected_pullback(cotangent)), strict=True)
    for value, wanted in outcomes:
        assert value.shape == wanted.shape
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5 * float(jnp.abs(wanted).max()))


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
    """XLA gives Eigen those whose axes are in this order; for others it writes scalar loops, ten times as slow."""

    def gradients(x, kernel):
        def loss(x, kernel):
            return (lowering.conv(x, kernel, strides=strides, padding=padding) ** 2).sum()

        return lax.map(lambda x: jax.grad(loss, argnums=(0, 1))(x, kernel), x)

    program = jax.jit(gradients).lower(images(2, 4, 27, 27, 8), images(kernel, kernel, 8, 16))
    options = lowering.compiler_options()
    convolutions = re.findall(r" convolution\(.*dim_labels=(\S+?),? ", program.compile(options).as_text())
    assert convolutions == 3 * ["b01f_01io->b01f"]


@pytest.mark.parametrize("padding", ["VALID", "SAME", 1])
@pytest.mark.parametrize(
    ("shape", "kernel_shape", "strides", "convolutions"),
    [
        ((2, 23, 27, 16), (3, 3, 16, 5), (1, 1), 6),  # Winograd's
        ((2, 27, 20, 17), (3, 3, 17, 5), (1, 1), 6),
        ((400, 2, 3, 16), (3, 3, 16, 5), (1, 1), 6),
        ((1, 13, 13, 64), (3, 3, 64, 5), (1, 1), 1),
        ((2, 23, 27, 15), (3, 3, 15, 5), (1, 1), 1),
        ((2, 23, 28, 3), (3, 3, 3, 8), (2, 2), 0),  # patches
        ((2, 22, 27, 1), (5, 3, 1, 8), (2, 3), 0),
        ((2, 1, 2, 3), (3, 3, 3, 8), (2, 2), 0),
        ((2, 23, 28, 3), (7, 7, 3, 8), (2, 2), 1),
        ((2, 23, 28, 3), (3, 3, 3, 8), (1, 1), 1),
    ],
)
def test_a_convolution_without_a_gradient_is_lax_to_rounding(shape, kernel_shape, strides, convolutions, padding):
    def f(x, kernel):
        return lowering.conv(x, kernel, strides=strides, padding=padding)

    x, kernel = images(*shape), images(*kernel_shape)
    pads = padding if isinstance(padding, str) else 2 * [(padding, padding)]
    expected = lax_conv(x, kernel, strides, pads)
    assert str(jax.make_jaxpr(f)(x, kernel)).count("conv_general_dilated[") == convolutions
    np.testing.assert_allclose(jax.jit(f)(x, kernel), expected, atol=3e-6 * float(jnp.abs(expected).max(initial=1)))
    if expected.size:  # XLA refuses the gradient of an empty one
        # With a gradient it is lax's, as are the two of that.
        gradients = jax.make_jaxpr(lambda *args: jax.vjp(f, *args)[1](expected))(x, kernel)
        assert str(gradients).count("conv_general_dilated[") == 3
        assert_values_and_gradients_equal(f, lambda x, kernel: lax_conv(x, kernel, strides, pads), x, kernel)


def test_winograds_algorithm_is_for_float32():
    """bfloat16 has 8 bits: its sums of up to 10 x would lose some of them."""
    args = images(2, 23, 27, 16, dtype="bfloat16"), images(3, 3, 16, 5, dtype="bfloat16")
    jaxpr = jax.make_jaxpr(lambda x, kernel: lowering.conv(x, kernel, strides=(1, 1), padding="SAME"))(*args)
    assert str(jaxpr).count("conv_general_dilated[") == 1


def test_a_1x1_convolution_is_a_product_with_the_narrow_operand_first():
    def loss(kernel, padding):
        return lowering.conv(images(2, 5, 5, 6), kernel, strides=(1, 1), padding=padding).sum()

    for features, swapped in ((9, False), (3, True)):
        for padding in (0, 1):  # 1: conv10 of the published Caffe models
            jaxpr = str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(images(1, 1, 6, features), padding))
            assert "conv_general_dilated" not in jaxpr
            assert ("optimization_barrier" in jaxpr) == swapped


@pytest.mark.parametrize(
    ("f", "reference"),
    [
        (lambda x: lowering.max_pool(x, ceil=True), lambda x: reference_pool(x, ceil=True)),
        (lambda x: lowering.conv(x, KERNEL_1, strides=(1, 1), padding="VALID"), lambda x: lax_conv(x, KERNEL_1)),
        (lambda x: lowering.conv(x, KERNEL_3, strides=(1, 1), padding="VALID"), lambda x: lax_conv(x, KERNEL_3)),
    ],
)
def test_forward_mode_is_for_portable_programs(f, reference):
    def tangent():
        return jax.jvp(f, (x,), (x,))[1]

    x = images(4, 7, 8, 3)
    with lowering.portable():
        expected = jax.jvp(reference, (x,), (x,))[1]
        np.testing.assert_allclose(tangent(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="forward-mode"):
        tangent()


def test_bias_and_its_gradient_are_a_sum():
    assert_values_and_gradients_equal(lowering.add_bias, jnp.add, images(4, 5, 3, 6), images(6))


@pytest.mark.parametrize("others", [(2, 3), (3, 2), (5,)])
def test_sums_of_parts_are_sums_whatever_the_parts(others):
    def f(x, y):
        parts = lowering.concatenate(x[..., :2], x[..., 2:])
        other = lowering.concatenate(y[..., : others[0]], y[..., others[0] :]) if len(others) == 2 else y
        return lowering.join(lowering.add(parts, other))

    x, y = images(2, 3, 4, 5), images(4, 3, 4, 5)[:2]
    np.testing.assert_array_equal(f(x, y), x + y)
    assert lowering.num_channels(lowering.concatenate(x, y, x)) == 15


def test_off_the_cpu_convolutions_are_lax_operations_of_whole_arrays(monkeypatch):
    monkeypatch.setattr(lowering, "_on_cpu", lambda: False)

    def f(x, kernel, bias):
        y = lowering.conv(lowering.concatenate(x, x), kernel, strides=(1, 1), padding="SAME")
        return lowering.add_bias(y, bias)

    equations = jax.make_jaxpr(f)(images(2, 5, 5, 2), images(1, 1, 4, 3), images(3)).eqns
    names = [equation.primitive.name for equation in equations]
    assert names == ["concatenate", "conv_general_dilated", "broadcast_in_dim", "add"]


@pytest.mark.parametrize(
    ("batch_size", "image_size", "parts"),
    [
        (32, 224, 4),
        (16, 227, 2),
        (8, 224, 1),
        (256, 32, 8),
        (48, 32, 2),
        (34, 32, 2),
        (37, 32, 1),
        (74, 32, 1),  # 37 are too many, 2 too few
        (4, 512, 2),
        (6, 1024, 6),
    ],
)
def test_parts_of_a_batch_are_equal_and_neither_large_nor_tiny(batch_size, image_size, parts, monkeypatch):
    assert lowering.num_microbatches(batch_size, image_size) == parts
    monkeypatch.setattr(lowering, "_on_cpu", lambda: False)
    assert lowering.num_microbatches(batch_size, image_size) == 1


def test_compiler_options_are_accepted_and_change_a_convolution_only_by_rounding():
    x, kernel = images(2, 9, 9, 8), images(3, 3, 8, 16)

    def f(x, kernel):
        return (lax_conv(x, kernel, padding="SAME") ** 2).sum()

    def gradients(options):
        return jax.jit(jax.grad(f, argnums=(0, 1)), compiler_options=options)(x, kernel)

    for plain, fast in zip(gradients({}), gradients(lowering.compiler_options()), strict=True):
        np.testing.assert_allclose(plain, fast, rtol=1e-4, atol=1e-3 * float(jnp.abs(plain).max()))
