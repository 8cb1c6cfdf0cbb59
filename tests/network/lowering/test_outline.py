"""What is outlined remains apart in XLA's program: whatever else it does there, speed depends on it."""

import jax
import jax.numpy as jnp

from squeezenet_jax.network import lowering
from squeezenet_jax.network.lowering.outline import outlined


@outlined
def double(x):
    return jnp.where(x > 0, 2 * x, x + x)  # jit in jit: that call is inlined


def test_outlined_function_is_one_call_of_one_fusion():
    lowered = jax.jit(lambda x: jnp.sin(double(jnp.exp(x)))).lower(jnp.ones((8, 128)))
    program = lowered.compile(lowering.compiler_options())
    text = program.as_text()
    assert text.count(" call(") == 1
    body = text[text.index("\n%double") :].strip().split("\n\n")[0]
    assert body.count(" fusion(") == 1
    assert (program(jnp.zeros((8, 128))) == jnp.sin(2.0)).all()
