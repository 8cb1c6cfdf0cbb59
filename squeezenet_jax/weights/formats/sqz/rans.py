"""The entropy coder: rANS in 64 lanes that take turns, all in integers. Letters: B symbols of one call.

A symbol has a share of 2**14: `start` (the shares of the symbols before it) and `size` (its own, at least 1). A lane's
state x is an integer in [2**16, 2**32). Symbol number j of a call belongs to lane j mod 64; each call begins with lane
0. Decoding one symbol, in C:

    slot = x & 16383;  find the symbol with start <= slot < start + size;
    x = size * (x >> 14) + slot - start;
    if (x < 65536) x = x << 16 | next 16-bit word of the stream;

An encoder does the inverse in the reverse order, so it first collects the whole file's symbols. `Encoder` and `Decoder`
have the same methods: an encoder's take the symbols, a decoder's ignore them, and both give them back, so that what
is coded, and with which probabilities, is written once for both (`layers.py`).

Why not a published coder: the probabilities change after every few symbols. NumPy is fast only where many symbols are
coded at once, so the coder must take a block with a distribution for each symbol; and a decoder in another language
must arrive at the same integers. Both together are these 60 lines. Read next: `contexts.py`.
"""

import numpy as np

from squeezenet_jax.system.errors import UserError

LANES = 64
TOTAL_BITS = 14
TOTAL = 1 << TOTAL_BITS  # what the sizes of a symbol's alternatives add up to
LOW = 1 << 16  # of a state; all lanes begin (for a decoder: end) with it
HIGH = 1 << 32
WORD_BITS = 16


class Encoder:
    """Collects symbols; `finish` codes them."""

    def __init__(self) -> None:
        self.starts: list[np.ndarray] = []
        self.sizes: list[np.ndarray] = []

    def choose(self, cumulative: np.ndarray, symbol_B: np.ndarray | None) -> np.ndarray:
        """Codes symbols 0 to m - 1. `cumulative` [B, m + 1]: row j has the shares before each symbol, and 2**14."""
        assert symbol_B is not None
        row = np.arange(len(symbol_B))
        start = cumulative[row, symbol_B]
        self._put(start, cumulative[row, symbol_B + 1] - start)
        return symbol_B

    def uniform(self, number_B: np.ndarray, value_B: np.ndarray | None) -> np.ndarray:
        """Codes values of which each is one of `number` (1 to 2**14) equally probable ones, from 0."""
        assert value_B is not None
        start = (value_B << TOTAL_BITS) // number_B
        self._put(start, ((value_B + 1) << TOTAL_BITS) // number_B - start)
        return value_B

    def _put(self, start: np.ndarray, size: np.ndarray) -> None:
        self.starts.append(start.astype(np.uint64))
        self.sizes.append(size.astype(np.uint64))

    def bits(self) -> float:
        """The ideal length of what has been collected; the stream is about 150 bytes longer."""
        sizes = np.concatenate([np.empty(0), *self.sizes])
        return float(TOTAL_BITS * len(sizes) - np.log2(sizes).sum())

    def finish(self) -> bytes:
        """The stream: each lane's state as uint32, then the words, all little-endian."""
        x = np.full(LANES, LOW, np.uint64)
        shift, word, total = np.uint64(TOTAL_BITS), np.uint64(WORD_BITS), np.uint64(TOTAL_BITS + 4)
        words = []
        for start, size in zip(reversed(self.starts), reversed(self.sizes), strict=True):
            for first in range((len(start) - 1) // LANES * LANES, -1, -LANES):
                f = size[first : first + LANES]
                lane = x[: len(f)]
                full = lane >= f << total  # x >= (LOW >> TOTAL_BITS << WORD_BITS) * f
                if full.any():
                    words.append(lane[full][::-1].astype("<u2"))
                    np.right_shift(lane, word, out=lane, where=full)
                quotient, rest = np.divmod(lane, f)
                np.left_shift(quotient, shift, out=lane)
                lane += rest
                lane += start[first : first + LANES]
        return x.astype("<u4").tobytes() + np.concatenate([np.empty(0, "<u2"), *words])[::-1].tobytes()


class Decoder:
    """Takes symbols from a stream. Raises `UserError` where it ends too early, or, in `finish`, where it goes on."""

    def __init__(self, stream: bytes) -> None:
        if len(stream) < 4 * LANES or len(stream) % 2:
            raise UserError(f"truncated or damaged: a stream of {len(stream)} bytes")
        self.x = np.frombuffer(stream, "<u4", LANES).astype(np.int64)
        self.words = np.frombuffer(stream, "<u2", offset=4 * LANES).astype(np.int64)
        self.place = 0
        if self.x.min() < LOW:
            raise UserError("damaged: a state of the stream is out of bounds")

    def choose(self, cumulative: np.ndarray, symbol_B: np.ndarray | None = None) -> np.ndarray:
        """As in `Encoder`."""
        result = np.empty(len(cumulative), np.int64)
        for first in range(0, len(result), LANES):
            table = cumulative[first : first + LANES]
            row = ROWS[: len(table)]
            slot = self.x[: len(table)] & (TOTAL - 1)
            if table.shape[1] == 3:
                symbol = (slot >= table[:, 1]).astype(np.int64)
            else:
                symbol = (slot[:, None] >= table[:, 1:-1]).sum(1)
            start = table[row, symbol]
            self._advance(slot, start, table[row, symbol + 1] - start)
            result[first : first + LANES] = symbol
        return result

    def uniform(self, number_B: np.ndarray, value_B: np.ndarray | None = None) -> np.ndarray:
        """As in `Encoder`."""
        result = np.empty(len(number_B), np.int64)
        for first in range(0, len(result), LANES):
            number = number_B[first : first + LANES]
            slot = self.x[: len(number)] & (TOTAL - 1)
            value = ((slot + 1) * number - 1) >> TOTAL_BITS  # the last one whose start is not above the slot
            start = (value << TOTAL_BITS) // number
            self._advance(slot, start, ((value + 1) << TOTAL_BITS) // number - start)
            result[first : first + LANES] = value
        return result

    def _advance(self, slot: np.ndarray, start: np.ndarray, size: np.ndarray) -> None:
        n = len(slot)
        x = size * (self.x[:n] >> TOTAL_BITS) + slot - start
        low = x < LOW
        if number := np.count_nonzero(low):
            words = self.words[self.place : self.place + number]
            if len(words) < number:
                raise UserError("truncated or damaged: the stream ends too early")
            x[low] = (x[low] << WORD_BITS) | words
            self.place += int(number)
        self.x[:n] = x

    def finish(self) -> None:
        if self.place != len(self.words) or (self.x != LOW).any():
            raise UserError("damaged: the stream does not end where its symbols do")


ROWS = np.arange(LANES)
