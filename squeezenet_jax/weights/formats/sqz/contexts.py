"""Probabilities that adapt to what has been coded already: of positions and of symbols, in integers throughout.

They change block by block (`blocks`): within a block all are those of its beginning, so that a whole block is one
operation of NumPy. Letters: B positions of a block, M symbols; O, I, T: rows, columns and taps of a kernel.

Products stay below 2**63 for layers of at most `MAX_WEIGHTS` weights. Read next: `layers.py`.
"""

import math
from collections.abc import Iterator

import numpy as np

from squeezenet_jax.weights.formats.sqz.rans import TOTAL, Decoder, Encoder

Coder = Encoder | Decoder
MAX_WEIGHTS = 1 << 22  # of one layer
MAX_MAGNITUDE = 255
GOLDEN = 40503  # of 2**16: 0.618

FIRST_BLOCK, LARGEST_BLOCK = 32, 512

ONE = 256  # a ratio of 1
MAX_RATIO = 16 * ONE
PRIOR = np.array([[20], [20], [20], [2]])  # of a row, a column, a tap, a kernel: so many of the layer's mean
# 256 * 2**((j - 5.5) / 6), rounded: steps of a sixth of an octave around a ratio of 1.
THRESHOLDS = np.array([136, 152, 171, 192, 215, 242, 271, 304, 342, 384, 431, 483])
CLASSES = len(THRESHOLDS) + 1

MASK_PRIOR = 20
LEAST = TOTAL // 256  # the share of either answer to "is the weight kept": so a weight costs at least 0.0056 bits
SYMBOL_PRIOR = 128
RADIX = 16


def blocks(number: int) -> Iterator[slice]:
    """0 to `number` in blocks as large as all that came before them, but from 32 to 512."""
    start = 0
    while start < number:
        stop = min(number, start + min(max(start, FIRST_BLOCK), LARGEST_BLOCK))
        yield slice(start, stop)
        start = stop


class Places:
    """The positions of a kernel of O rows, I columns and T taps; a position is an index into it in the order O, I, T.

    They are visited tap by tap, and in each tap kernel by kernel (number o * I + i) in leaps of about 0.618 of their
    number, so that soon something is known of every row and every column. A place is a row, a column, a tap or a
    kernel: these are numbered in this order, one kind after the other.
    """

    def __init__(self, rows: int, columns: int, taps: int) -> None:
        self.rows, self.columns, self.taps = rows, columns, taps
        self.kernels = rows * columns
        self.number = rows + columns + taps + self.kernels

    def visits(self) -> np.ndarray:
        """[N] positions, in the order in which they are visited."""
        leap = self.kernels * GOLDEN >> 16 | 1
        while math.gcd(leap, self.kernels) != 1:
            leap += 1
        kernel = np.arange(self.kernels) * leap % self.kernels
        return (kernel * self.taps + np.arange(self.taps)[:, None]).ravel()

    def of(self, position_B: np.ndarray) -> np.ndarray:
        """[4, B] row, column, tap and kernel of each position."""
        kernel, tap = position_B // self.taps, position_B % self.taps
        row, column = kernel // self.columns, kernel % self.columns
        start = self.rows + self.columns
        return np.stack([row, self.rows + column, start + tap, start + self.taps + kernel])


class LocalMean:
    """How large some quantity is around a position, from what is known of its row, column, tap and kernel by now.

    The quantity is 1 for a kept weight and 0 for another, or the magnitude of a kept weight. `total` and `number`: of
    the whole layer, with a first guess of the mean.
    """

    def __init__(self, places: int, total: int, number: int) -> None:
        self.sums = np.zeros(places, np.int64)
        self.counts = np.zeros(places, np.int64)
        self.total, self.number = total, number

    def classes(self, place_4B: np.ndarray) -> np.ndarray:
        """[B] 0 to `CLASSES` - 1: the product of the four means' ratios to the layer's mean, each pulled towards 1."""
        sums, counts = self.sums[place_4B], self.counts[place_4B]
        ratio_4B = (sums * self.number + PRIOR * self.total) * ONE // ((counts + PRIOR) * self.total)
        row, column, tap, kernel = np.minimum(ratio_4B, MAX_RATIO)
        product = (((row * column >> 8) * tap) >> 8) * kernel >> 8
        found: np.ndarray = np.searchsorted(THRESHOLDS, product, side="right")
        return found

    def add(self, place_4B: np.ndarray, value_B: np.ndarray) -> None:
        np.add.at(self.sums, place_4B, np.broadcast_to(value_B, place_4B.shape))
        np.add.at(self.counts, place_4B, 1)
        self.total += int(value_B.sum())
        self.number += len(value_B)


def code_mask(coder: Coder, places: Places, position_N: np.ndarray, kept_N: np.ndarray | None) -> np.ndarray:
    """[N] bool: which positions have a weight. `kept_N`: 0 or 1 each."""
    number = len(position_N)
    local = LocalMean(places.number, 1, 2)
    ones, seen = np.zeros(CLASSES, np.int64), np.zeros(CLASSES, np.int64)
    result = np.empty(number, bool)
    cumulative = np.zeros((CLASSES, 3), np.int64)
    cumulative[:, 2] = TOTAL
    for block in blocks(number):
        place_4B = places.of(position_N[block])
        context = local.classes(place_4B)
        share = (ones * local.number + MASK_PRIOR * local.total) * TOTAL // ((seen + MASK_PRIOR) * local.number)
        cumulative[:, 1] = TOTAL - np.clip(share, LEAST, TOTAL - LEAST)
        kept = coder.choose(cumulative[context], None if kept_N is None else kept_N[block])
        ones += np.bincount(context, kept, CLASSES).astype(np.int64)
        seen += np.bincount(context, minlength=CLASSES)
        local.add(place_4B, kept)
        result[block] = kept
    return result


class Symbols:
    """Symbols 0 to M - 1 in contexts, as digits from the largest: the first in its context, each other one after those
    before it. So neighbours among the symbols share what is learned of them, and no digit has more than 16 values.
    """

    def __init__(self, number: int, contexts: int = 1) -> None:
        self.number = number
        self.units = [-(-number // RADIX)]  # what a digit counts
        while self.units[-1] > 1:
            self.units.append(-(-self.units[-1] // RADIX))
        self.leading = np.zeros((contexts, -(-number // self.units[0])), np.int64)
        self.later: list[np.ndarray] = []  # [what came before, digit]
        before = self.leading.shape[1]
        for above, unit in zip(self.units, self.units[1:], strict=False):
            self.later.append(np.full((before, -(-above // unit)), 2, np.int64))
            before *= self.later[-1].shape[1]

    def code(self, coder: Coder, context_B: np.ndarray, symbol_B: np.ndarray | None) -> np.ndarray:
        """One block, after which the counts change. What a decoder gives may be M or above: that is damage."""
        common = self.leading.sum(0) + 1
        rest = symbol_B
        result = before = np.zeros(len(context_B), np.int64)
        for level, unit in enumerate(self.units):
            counts = self.later[level - 1] if level else self.leading
            row = before if level else context_B
            cumulative = _cumulative(counts if level else counts * common.sum() + SYMBOL_PRIOR * common)
            digit = coder.choose(cumulative[row], None if rest is None else rest // unit)
            np.add.at(counts, (row, digit), 1)
            rest = None if rest is None else rest % unit
            before = before * counts.shape[1] + digit
            result = result + digit * unit
        return result


def _cumulative(counts_CM: np.ndarray) -> np.ndarray:
    """[C, M + 1] shares before each symbol: in proportion to the counts, but at least 1 of 2**14 each."""
    number = counts_CM.shape[1]
    before: np.ndarray = np.zeros((len(counts_CM), number + 1), np.int64)
    np.cumsum(counts_CM, axis=1, out=before[:, 1:])
    cumulative: np.ndarray = before * (TOTAL - number) // before[:, -1:] + np.arange(number + 1)
    return cumulative
