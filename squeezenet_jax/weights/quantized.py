"""Quantised layers: what compression makes and what the compressed file stores. Kernels are HWIO, as flax has them.

Read next: `formats/compressed.py`, the file.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class QuantizedLayer:
    """A convolution with few distinct weights.

    Attributes:
      name: its path in the parameters, "fire2/squeeze1x1".
      code_HWIO: int16; 0 means a weight of exactly 0 (removed), code k > 0 is `values[k]`.
      values: float32 [n + 1]; `values[0]` is 0, the others are any finite numbers, strictly increasing.
      bias_O: float32 [O].
    """

    name: str
    code_HWIO: np.ndarray
    values: np.ndarray
    bias_O: np.ndarray

    @property
    def kernel_HWIO(self) -> np.ndarray:
        """The weights, float32."""
        kernel: np.ndarray = self.values[self.code_HWIO]
        return kernel
