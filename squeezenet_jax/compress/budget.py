"""Bytes of quantised layers, estimated without making a file.

Letters: O output channels, D = H W I weights each, N weights.
"""

from collections.abc import Sequence

import numpy as np

from squeezenet_jax.weights.quantized import QuantizedLayer

FILE_BYTES = 600  # signature, architecture, preprocessing
BIAS_BITS = 9  # sign, exponent, mantissa
LEAST_SHARE = 1 / 256  # of kept or removed weights: no weight costs less than 0.006 bits


def estimated_bytes(layers: Sequence[QuantizedLayer]) -> int:
    """About as many as an entropy coder needs whose contexts are a weight's row, column and tap.

    Values have their zero-order entropy, which is 1 to 3 % more than in contexts; tables are multiples of a step.
    """
    bits = 0.0
    for layer in layers:
        code_OD = layer.code_HWIO.reshape(-1, layer.code_HWIO.shape[-1]).T
        kept_OD = code_OD != 0
        count = np.bincount(code_OD[kept_OD], minlength=1)
        count = count[count > 0]
        bits += float(np.sum(count * np.log2(count.sum() / count)))
        bits += mask_bits(kept_OD)
        bits += 64 + 4 * len(layer.values) + BIAS_BITS * len(layer.bias_O)
    return FILE_BYTES + int(np.ceil(bits / 8))


def mask_bits(kept_OD: np.ndarray) -> float:
    """What it costs to say which weights are kept, where rows and columns have their shares.

    A weight's odds are those of its row times those of its column, over those of all.
    """
    rows, columns = kept_OD.shape
    share = (kept_OD.sum() + 0.5) / (kept_OD.size + 1)
    row_O1 = (kept_OD.sum(1, keepdims=True) + 2 * share) / (columns + 2)
    column_1D = (kept_OD.sum(0, keepdims=True) + 2 * share) / (rows + 2)
    odds_OD = _odds(row_O1) * _odds(column_1D) / _odds(share)
    probability_OD = np.clip(odds_OD / (1 + odds_OD), LEAST_SHARE, 1 - LEAST_SHARE)
    return float(-np.log2(np.where(kept_OD, probability_OD, 1 - probability_OD)).sum())


def _odds(share: np.ndarray) -> np.ndarray:
    share = np.clip(share, 1e-4, 1 - 1e-4)
    odds: np.ndarray = share / (1 - share)
    return odds
