"""The choice of forms: what is traced where, sums of parts, parts of a batch, and the compiler's options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from against_lax import assert_values_and_gradients_equal, images, lax_conv, reference_pool

from squeezenet_jax.network import lowering
from squeezenet_jax.network.architecture import V1_1

KERNEL_1, KERNEL_3 = (np.ones((n, n, 3, 2), np.float32) for n in (1, 3))


@pytest.mark.parametrize(
    ("f", "reference"),
    [
        (lambda x: lowering.max_pool(x, ceil=True), lambda x: reference_pool(x, ceil=True)),
        (lambda x: lowering.activate(x, "relu"), lambda x: jax.nn.relu(x)),
        (lambda x: lowering.conv(x, KERNEL_1, None, strides=(1, 1), padding="VALID"), lambda x: lax_conv(x, KERNEL_1)),
        (lambda x: lowering.conv(x, KERNEL_3, None, strides=(1, 1), padding="VALID"), lambda x: lax_conv(x, KERNEL_3)),
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
    assert lowering.num_microbatches(V1_1, batch_size, image_size, training=True) == parts
    monkeypatch.setattr(lowering, "_on_cpu", lambda: False)
    assert lowering.num_microbatches(V1_1, batch_size, image_size, training=True) == 1


def test_compiler_options_are_accepted_and_change_a_convolution_only_by_rounding():
    x, kernel = images(2, 9, 9, 8), images(3, 3, 8, 16)

    def f(x, kernel):
        return (lax_conv(x, kernel, padding="SAME") ** 2).sum()

    def gradients(options):
        return jax.jit(jax.grad(f, argnums=(0, 1)), compiler_options=options)(x, kernel)

    for plain, fast in zip(gradients({}), gradients(lowering.compiler_options()), strict=True):
        np.testing.assert_allclose(plain, fast, rtol=1e-4, atol=1e-3 * float(jnp.abs(plain).max()))
