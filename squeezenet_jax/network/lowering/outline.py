"""Where a fusion of XLA's ends on a CPU.

XLA's CPU backend fuses a cheap operation into each of its consumers. A gradient then keeps and reads the operation's
operands, though its result is in memory too, and a sum that is used three times is computed three times.
`lax.optimization_barrier` does not help: it is dropped before operations are fused.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec

import jax
from jax import Array
from jax.experimental.xla_metadata import set_xla_metadata

P = ParamSpec("P")


def outlined(function: Callable[P, Array], *, static_argnames: str | None = None) -> Callable[P, Array]:
    """`function` as a program of its own, whose arguments and result are in memory.

    Its derivative is not kept apart, so it belongs into the rules of a `jax.custom_vjp`.
    """
    compiled = jax.jit(function, static_argnames=static_argnames)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Array:
        # XLA makes all calls part of the caller, unless they have this attribute.
        result: Array = set_xla_metadata(compiled(*args, **kwargs), inlineable="false")
        return result

    return call


@outlined
def in_memory(x: Array) -> Array:
    """x, computed once."""
    return x
