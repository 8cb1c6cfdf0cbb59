"""The activation relu is jax's, and holds in memory what the next layer reads and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from against_lax import images
from jax.sharding import NamedSharding, PartitionSpec

from squeezenet_jax.network import lowering

relu = functools.partial(lowering.activate, name="relu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_relu_and_its_gradient_equal_those_of_jax(dtype):
    special = jnp.asarray([0.0, -0.0, jnp.inf, -jnp.inf, jnp.nan, 1e-45], dtype)
    x = jnp.concatenate([images(4, 10, dtype=dtype).ravel(), special])
    (y, pullback), (expected, expected_pullback) = jax.vjp(jax.jit(relu), x), jax.vjp(jax.jit(jax.nn.relu), x)
    g = jnp.arange(1, 1 + len(x)).astype(dtype)
    for value, wanted in ((y, expected), (pullback(g)[0], expected_pullback(g)[0])):
        assert value.dtype == wanted.dtype
        np.testing.assert_array_equal(value.astype("float32"), wanted.astype("float32"))


def test_relu_and_its_gradient_commute_with_vmap_and_with_sharding():
    x = images(2 * jax.device_count(), 6)
    gradient = jax.grad(lambda x: (relu(x) ** 2).sum())
    expected = 2 * jax.nn.relu(x)
    np.testing.assert_array_equal(jax.vmap(gradient)(x), expected)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    program = jax.jit(gradient).lower(sharded).compile()
    assert " call(" in program.as_text() and "all-gather" not in program.as_text()
    np.testing.assert_array_equal(program(sharded), expected)


def test_relu_off_the_cpu_is_that_of_jax(monkeypatch):
    monkeypatch.setattr(lowering, "_on_cpu", lambda: False)
    assert str(jax.make_jaxpr(relu)(images(2, 3))) == str(jax.make_jaxpr(jax.nn.relu)(images(2, 3)))


def temporary_bytes(relu):
    """Of the gradients of three layers."""

    def loss(kernels, x):
        for kernel in kernels:
            x = relu(lowering.add_bias(x @ kernel, kernel[0]))
        return x.sum()

    program = jax.jit(jax.grad(loss)).lower([images(64, 64)] * 3, images(4096, 64))
    return program.compile(lowering.compiler_options()).memory_analysis().temp_size_in_bytes


def test_gradient_keeps_the_result_only():
    # Of each layer the result; and two gradients, or the last layer's result and one.
    array = 4096 * 64 * 4
    assert temporary_bytes(relu) < 5.5 * array < temporary_bytes(jax.nn.relu)
