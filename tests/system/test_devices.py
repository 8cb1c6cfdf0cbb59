"""What variables of jax's may say and what training does all the same."""

import jax
import pytest

from squeezenet_jax.system import devices


@pytest.mark.parametrize(
    ("name", "other"),
    [("jax_enable_x64", True), ("jax_default_prng_impl", "rbg"), ("jax_threefry_partitionable", False)],
)
def test_numbers_are_the_usual_ones_whatever_the_variables_say(name, other):
    """As though JAX_ENABLE_X64 or another were set, which `jax.config` then begins with."""

    def drawn():
        bits = jax.random.bits(jax.random.split(jax.random.key(3), 5)[1], (3,))
        return bits.tolist(), (jax.numpy.zeros(2) + 1).dtype.name, jax.numpy.arange(2).dtype.name

    usual, before = drawn(), getattr(jax.config, name)
    try:
        jax.config.update(name, other)
        assert drawn() != usual
        devices.use_the_usual_numbers()
        assert drawn() == usual
    finally:
        jax.config.update(name, before)
