"""Deep Compression and DSD as constraints on training: removed weights stay 0, shared weights stay equal.

What a constraint allows is a linear subspace, and a step is one of projected gradient descent: the gradient and the new
parameters are projected onto it.

    pruned    w -> w where the weight is kept, 0 elsewhere     (arXiv 1510.00149, Sec. 2)
    k-means   w -> the mean of all weights of w's cluster      (Sec. 3)
    uniform   w -> (w.q / q.q) q, with the integers q fixed: what is trained is the step between them

Deep Compression's Eq. 3 has the sum of a cluster's gradients where the projection has their mean: the same direction of
each centroid, at another rate. DSD (arXiv 1607.04381) prunes, trains, and lifts the constraint again. The codes that
say what is removed and shared are part of the state, so a run goes on from any checkpoint. Read next: `steps.py`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from squeezenet_jax.compress import pruning, sharing
from squeezenet_jax.settings import MAX_BITS, CompressSettings
from squeezenet_jax.system import nested

FREE = 1  # the code of a weight that is neither removed nor shared; a removed one has 0
PRUNINGS = 10  # times that a gradual pruning removes weights
MAX_CODES = 1 << MAX_BITS


@dataclasses.dataclass(frozen=True)
class Constraint:
    """What `settings` remove and share in a training of so many steps. Codes are int16, nested like the kernels."""

    settings: CompressSettings
    total_steps: int

    def begin(self, params: Any) -> Any:
        """The codes before step 0: all weights are free."""
        return _nested({name: jnp.full(x.shape, FREE, jnp.int16) for name, x in _kernels(params).items()})

    def project(self, params: Any, codes: Any, step: jax.Array) -> Any:
        """The nearest parameters, or gradient, that the codes allow in the step that comes after `step` others."""
        flat = nested.flatten(params, "/")
        for path, code in nested.flatten(codes, "/").items():
            flat[path] = self._project(flat[path], code, step)
        return nested.unflatten(flat, "/")

    def _project(self, x: jax.Array, code: jax.Array, step: jax.Array) -> jax.Array:
        kept = jnp.where(code == 0, 0, x)
        if self.settings.share == "none":
            return kept
        subspace = _equal_in_clusters if self.settings.share == "kmeans" else _multiples_of_code
        projected: jax.Array = jax.lax.cond(
            step >= self._step(self.settings.share_from), subspace, lambda x, code: x, kept, code
        )
        return projected

    def changes(self, step: int) -> bool:
        """Whether codes change before the step that comes after `step` others."""
        return step in self._prunings() or step in (self._lifted(), self._shared())

    def change(self, step: int, params: Any, codes: Any) -> tuple[Any, Any]:
        """Parameters and codes, NumPy arrays, as they are from there on: a function of the arguments alone."""
        kernels, code = _kernels(params), _kernels(codes)
        if step in self._prunings():
            progress = self._prunings()[step]
            kept = pruning.densities(self.settings.prune, self.settings.density, kernels, progress)
            kernels = {name: sharing.prune(kernel, kept[name]) for name, kernel in kernels.items()}
            code = {name: np.where(kernel == 0, 0, FREE) for name, kernel in kernels.items()}
        if step == self._lifted():
            code = {name: np.full(kernel.shape, FREE) for name, kernel in kernels.items()}
        if step == self._shared():
            share = sharing.by_kmeans if self.settings.share == "kmeans" else sharing.by_steps
            shared = {name: share(kernel, self.settings.bits) for name, kernel in kernels.items()}
            kernels, code = ({name: pair[i] for name, pair in shared.items()} for i in (0, 1))
        flat = nested.flatten(params, "/") | nested.flatten(_nested(kernels), "/")
        return nested.unflatten(flat, "/"), _nested({name: x.astype(np.int16) for name, x in code.items()})

    def _prunings(self) -> dict[int, float]:
        """By number of steps taken before: how far the density has fallen, from above 0 to 1."""
        if self.settings.prune == "none":
            return {}
        first, last = self._step(self.settings.prune_from), self._step(self.settings.prune_until)
        return {first + (last - first) * i // PRUNINGS: i / PRUNINGS for i in range(1, PRUNINGS + 1)}

    def _lifted(self) -> int | None:
        return self._step(self.settings.dense_from) if self.settings.dense_from < 1 else None

    def _shared(self) -> int | None:
        return self._step(self.settings.share_from) if self.settings.share != "none" else None

    def _step(self, share_of_training: float) -> int:
        """Before which step; a time that rounds to the end is before the last one."""
        return min(round(share_of_training * self.total_steps), self.total_steps - 1)


def _kernels(tree: Any) -> dict[str, Any]:
    """By layer, "fire2/squeeze1x1"."""
    flat = nested.flatten(tree, "/")
    return {path.removesuffix("/kernel"): x for path, x in flat.items() if path.endswith("/kernel")}


def _nested(kernels: dict[str, Any]) -> Any:
    return nested.unflatten({f"{name}/kernel": x for name, x in kernels.items()}, "/")


def _equal_in_clusters(x: jax.Array, code: jax.Array) -> jax.Array:
    """The mean over the weights of the same code, for each weight that is not removed."""
    flat, code = x.ravel(), code.ravel().astype(jnp.int32)
    mean = (_sums(flat, code) / jnp.maximum(_sums(jnp.ones_like(flat), code), 1)).at[0].set(0)
    return mean[code].reshape(x.shape)


def _sums(x_N: jax.Array, code_N: jax.Array) -> jax.Array:
    if jax.default_backend() == "cpu":
        return jax.ops.segment_sum(x_N, code_N, MAX_CODES)
    # An accelerator's scatter would add in any order, so that its devices would drift apart.
    return jnp.sum(jnp.where(code_N == jnp.arange(MAX_CODES)[:, None], x_N, 0), axis=1)


def _multiples_of_code(x: jax.Array, code: jax.Array) -> jax.Array:
    q = code.astype(x.dtype)
    return q * (jnp.sum(x * q) / jnp.maximum(jnp.sum(q * q), 1))
