"""The activations by name, and the ReLU on a CPU: its gradient looks at its result.

jax's looks at its operand, W x + b: that is kept beside the result, or at least W x, to which b is added again.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

from squeezenet_jax.network.architecture import Activation
from squeezenet_jax.network.lowering.outline import in_memory


@jax.custom_vjp
def relu(x: Array) -> Array:
    """max(x, 0), with gradient 0 at 0 and at NaN."""
    return jnp.maximum(x, 0)


def _relu_forward(x: Array) -> tuple[Array, Array]:
    # XLA would turn max(x, 0) > 0 into x > 0.
    y = in_memory(relu(x))
    return y, y


def _relu_backward(y: Array, g: Array) -> tuple[Array]:
    return (jnp.where(y > 0, g, 0),)


relu.defvjp(_relu_forward, _relu_backward)

PLAIN: Mapping[Activation, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "leaky_relu": jax.nn.leaky_relu,
    "swish": jax.nn.swish,
}
CPU: Mapping[Activation, Callable[[Array], Array]] = {**PLAIN, "relu": relu}
