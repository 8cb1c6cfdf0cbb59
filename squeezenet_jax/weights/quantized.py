"""Quantised layers: what compression makes and what the compressed file stores. Kernels are HWIO, as flax has them.

Read next: `formats/compressed.py`, the file.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import Weights, flatten, unflatten


@dataclasses.dataclass(frozen=True)
class QuantizedLayer:
    """A convolution with few distinct weights.

    Attributes:
      name: its path in the parameters, "fire2/squeeze1x1".
      code_HWIO: int16; 0 means a weight of exactly 0 (removed), code k > 0 is `values[k]`.
      values: float32 [n + 1]; `values[0]` is 0, the others are any finite numbers, strictly increasing.
      bias_O: float32 [O].
      order: int16 [n], the codes 1 to n in the order in which their values stood in the code book of the file that they
        come from; None where that was sorted, or there was none. Only for writing that file again, byte by byte.
    """

    name: str
    code_HWIO: np.ndarray
    values: np.ndarray
    bias_O: np.ndarray
    order: np.ndarray | None = None

    @property
    def kernel_HWIO(self) -> np.ndarray:
        """The weights, float32."""
        kernel: np.ndarray = self.values[self.code_HWIO]
        return kernel


def from_weights(weights: Weights, most: int) -> list[QuantizedLayer]:
    """The layers of a network whose weights are quantised already, equal to the bit (but for -0, which becomes 0), with
    their code books' order; in the order of the network, whatever that of the parameters.

    `UserError` where a layer has more than `most` different weights besides 0.
    """
    if weights.arch.norm != "none":
        raise UserError(f"{weights.arch.norm} normalisation cannot be stored: a compressed file has kernels and biases")
    flat = flatten(weights.params)
    names = [layer.name for layer in weights.trace() if layer.kind == "conv"]
    return [
        _exactly(name, flat[f"{name}/kernel"], flat[f"{name}/bias"], weights.codebooks.get(name), most)
        for name in names
    ]


def _exactly(
    name: str, kernel_HWIO: np.ndarray, bias_O: np.ndarray, codebook: np.ndarray | None, most: int
) -> QuantizedLayer:
    used = np.unique(kernel_HWIO[kernel_HWIO != 0])
    order = None
    if codebook is not None and np.isin(used, codebook).all():  # else the weights have changed since
        order = (np.argsort(np.argsort(codebook)) + 1).astype(np.int16)
        used = np.sort(codebook)
    if len(used) > most:
        raise UserError(
            f"{name}: has {len(used):,} different weights, and at most {most:,} can be stored; "
            "quantise it first: compress WEIGHTS OUT --bits N"
        )
    values = np.concatenate([np.zeros(1, np.float32), used])
    code = np.where(kernel_HWIO == 0, 0, np.searchsorted(used, kernel_HWIO) + 1).astype(np.int16)
    return QuantizedLayer(name, code, values, np.ascontiguousarray(bias_O), order)


def parameters(layers: Sequence[QuantizedLayer]) -> dict[str, Any]:
    """The layers as a network's parameters."""
    flat: dict[str, np.ndarray] = {}
    for layer in layers:
        flat |= {f"{layer.name}/kernel": layer.kernel_HWIO, f"{layer.name}/bias": layer.bias_O}
    return unflatten(flat)


def codebooks(layers: Sequence[QuantizedLayer]) -> dict[str, np.ndarray]:
    """What `Weights.codebooks` says of these layers."""
    return {layer.name: layer.values[layer.order] for layer in layers if layer.order is not None}
