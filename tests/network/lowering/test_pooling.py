"""`lowering.max_pool` is lax's: values and gradients, for odd and even sizes, both roundings and ties."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from against_lax import images, reference_pool
from jax.sharding import NamedSharding, PartitionSpec

from squeezenet_jax.network import lowering

SIZES = [(2, 5), (3, 4), (7, 8), (8, 5)]


def pooled_and_gradient(pool, x):
    """pool(x) and the gradient of x for one random cotangent."""
    y, pullback = jax.vjp(pool, x)
    return y, pullback(jnp.asarray(np.random.default_rng(2).normal(size=y.shape), y.dtype))[0]


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
