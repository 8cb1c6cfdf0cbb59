"""Bytes of quantised layers: an estimate without a file, and the bits of single codes.

Letters: O output channels, D = H W I weights each, N weights.
"""

from collections.abc import Sequence

import numpy as np

from squeezenet_jax.compress.rounding import MAX_CODE, Price
from squeezenet_jax.weights.quantized import QuantizedLayer

FILE_BYTES = 600  # signature, architecture, preprocessing
BIAS_BITS = 9  # sign, exponent, mantissa
LEAST_SHARE = 1 / 256  # of kept or removed weights: no weight costs less than 0.006 bits
SMOOTHING = 0.1  # of a table of bits: the share that a code has from its neighbours


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
        kept_bits, removed_bits = mask_bits(kept_OD)
        bits += float(np.sum(count * np.log2(count.sum() / count)))
        bits += float(np.where(kept_OD, kept_bits, removed_bits).sum())
        bits += 64 + 4 * len(layer.values) + BIAS_BITS * len(layer.bias_O)
    return FILE_BYTES + int(np.ceil(bits / 8))


def mask_bits(kept_OD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[O, D] twice: what it costs to say that a weight is kept, or removed, where rows and columns have their shares.

    A weight's odds are those of its row times those of its column, over those of all.
    """
    rows, columns = kept_OD.shape
    share = (kept_OD.sum() + 0.5) / (kept_OD.size + 1)
    row_O1 = (kept_OD.sum(1, keepdims=True) + 2 * share) / (columns + 2)
    column_1D = (kept_OD.sum(0, keepdims=True) + 2 * share) / (rows + 2)
    odds_OD = _odds(row_O1) * _odds(column_1D) / _odds(share)
    probability_OD = np.clip(odds_OD / (1 + odds_OD), LEAST_SHARE, 1 - LEAST_SHARE)
    return -np.log2(probability_OD), -np.log2(1 - probability_OD)


def _odds(share: np.ndarray) -> np.ndarray:
    share = np.clip(share, 1e-4, 1 - 1e-4)
    odds: np.ndarray = share / (1 - share)
    return odds


def price(code_OD: np.ndarray, per_bit: float) -> Price:
    """What codes would cost in a layer whose codes are about these."""
    magnitudes = np.abs(np.arange(-MAX_CODE, MAX_CODE + 1))
    count = np.bincount(code_OD.ravel() + MAX_CODE, minlength=len(magnitudes)).astype(np.float64)
    count[MAX_CODE] = 0
    mean = (count @ magnitudes + 1) / (count.sum() + 1)
    count = (1 - SMOOTHING) * count + SMOOTHING * np.convolve(count, np.full(5, 1 / 5), mode="same")
    count += np.exp(-magnitudes / mean) + 1e-6  # a code that was not seen is possible
    count[MAX_CODE] = 0
    with np.errstate(divide="ignore"):
        value_bits = -np.log2(count / count.sum())
    return Price(per_bit, value_bits, *mask_bits(code_OD != 0))
