"""Layers as symbols: bias, table of values, positions, values; the same code encodes and decodes.

Letters: H, W, I, O of a kernel, N weights, B of a block. Read next: `compressed.py`, the file; docs/format.md describes
it all.
"""

import math

import numpy as np

from squeezenet_jax.network.trace import Shape
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.formats.sqz.contexts import (
    CLASSES,
    MAX_MAGNITUDE,
    MAX_WEIGHTS,
    Coder,
    LocalMean,
    Places,
    Symbols,
    blocks,
    code_mask,
)
from squeezenet_jax.weights.quantized import QuantizedLayer

MAX_VALUES = 4095  # of a layer, without the 0
PIECE = 11  # bits of a number that are coded at once
MANTISSA = 23


class Numbers:
    """What is learned of floats over all layers."""

    def __init__(self) -> None:
        self.exponents = Symbols(256)
        self.lengths = Symbols(33)


def code_layer(
    coder: Coder, shape_HWIO: Shape, numbers: Numbers, layer: QuantizedLayer | None, name: str = ""
) -> QuantizedLayer:
    """One layer: `layer` for an encoder; for a decoder None, and the layer's name."""
    height, width, inputs, outputs = shape_HWIO
    if math.prod(shape_HWIO) > MAX_WEIGHTS:
        name = name if layer is None else layer.name
        raise UserError(f"{name}: {math.prod(shape_HWIO):,} weights; a compressed layer has at most {MAX_WEIGHTS:,}")
    bias = code_bias(coder, outputs, numbers, None if layer is None else layer.bias_O)
    values = code_values(coder, numbers, None if layer is None else layer.values)
    order = _code_order(coder, len(values) - 1, layer)
    code = np.zeros(math.prod(shape_HWIO), np.int16)  # in the order of O, I, H, W
    if len(values) > 1:
        given = None if layer is None else layer.code_HWIO.transpose(3, 2, 0, 1).ravel().astype(np.int64)
        places = Places(outputs, inputs, height * width)
        position = places.visits()
        kept = code_mask(coder, places, position, None if given is None else (given[position] > 0).astype(np.int64))
        position = position[kept]
        code[position] = _code_weights(coder, places, position, values, None if given is None else given[position])
    code_HWIO = np.ascontiguousarray(code.reshape(outputs, inputs, height, width).transpose(2, 3, 1, 0))
    return QuantizedLayer(name if layer is None else layer.name, code_HWIO, values, bias, order)


def _code_weights(
    coder: Coder, places: Places, position_N: np.ndarray, values: np.ndarray, code_N: np.ndarray | None
) -> np.ndarray:
    """The codes, 1 to K, of the kept weights; its magnitude is how far a code is from 0 in the table."""
    number, negative = len(values) - 1, int((values[1:] < 0).sum())
    local = LocalMean(places.number, max(1, number // 4), 1)
    symbols = Symbols(number, CLASSES)
    result = np.empty(len(position_N), np.int16)
    for block in blocks(len(result)):
        place_4B = places.of(position_N[block])
        given = None if code_N is None else code_N[block] - 1
        code = symbols.code(coder, local.classes(place_4B), given) + 1
        if code.max(initial=0) > number:
            raise UserError("damaged: a weight's value is not in its layer's table")
        magnitude = np.where(code > negative, code - negative, negative + 1 - code)
        local.add(place_4B, np.minimum(magnitude, MAX_MAGNITUDE))
        result[block] = code
    return result


def code_bias(coder: Coder, number: int, numbers: Numbers, bias_O: np.ndarray | None) -> np.ndarray:
    """float32: the number of mantissa bits that are 0 in all, then exponents, signs, and the other mantissa bits."""
    given = None if bias_O is None else bias_O.view(np.uint32).astype(np.int64)
    zeros = given if given is None else np.array([_trailing_zeros(given)])
    zeros = _code_bits(coder, np.array([5]), zeros)
    if zeros[0] > MANTISSA:
        raise UserError("damaged: a bias has more bits than a float")
    exponent = _code_adaptive(coder, numbers.exponents, number, None if given is None else given >> MANTISSA & 255)
    sign = _code_bits(coder, np.ones(number, np.int64), None if given is None else given >> 31)
    mantissa = None if given is None else (given & (1 << MANTISSA) - 1) >> zeros[0]
    mantissa = _code_bits(coder, np.full(number, MANTISSA - zeros[0]), mantissa) << zeros[0]
    return _floats(sign << 31 | exponent << MANTISSA | mantissa)


def _trailing_zeros(patterns: np.ndarray) -> int:
    together = int(np.bitwise_or.reduce(patterns, initial=0)) & (1 << MANTISSA) - 1
    return MANTISSA if together == 0 else (together & -together).bit_length() - 1


def code_values(coder: Coder, numbers: Numbers, values: np.ndarray | None) -> np.ndarray:
    """float32 [K + 1] with a 0 before them: K, then rising integers, which are multiples of a step or floats."""
    given = None if values is None else np.array([len(values) - 1])
    number = int(_code_bits(coder, np.array([12]), given)[0])
    if number == 0:
        return np.zeros(1, np.float32)
    integers: np.ndarray | None = None
    step = 0  # bit pattern of a float32
    if values is not None:
        multiples = _multiples(values[1:])
        step, integers = multiples if multiples is not None else (0, _sortable(values[1:]))
    step = int(_code_bits(coder, np.array([32]), None if values is None else np.array([step]))[0])
    first = _code_bits(coder, np.array([32]), None if integers is None else integers[:1] & (1 << 32) - 1)
    first = (first ^ 1 << 31) - (1 << 31)  # of two's complement
    gap = None if integers is None else np.diff(integers)
    lengths = None if gap is None else np.frexp(gap.astype(np.float64))[1].astype(np.int64)  # in bits
    length = _code_adaptive(coder, numbers.lengths, number - 1, lengths)
    rest = None if gap is None else gap - (1 << length >> 1)
    gap = _code_bits(coder, np.maximum(length - 1, 0), rest) + (1 << length >> 1)
    integers = np.cumsum(np.concatenate([first, gap]))
    if np.abs(integers).max() >= 1 << 31:
        raise UserError("damaged: a table's values are out of bounds")
    with np.errstate(over="ignore", invalid="ignore"):
        floats = _floats(np.array([step])) * integers.astype(np.float32) if step else _unsortable(integers)
    if not np.isfinite(floats).all() or (floats == 0).any() or (np.diff(floats) <= 0).any():
        raise UserError("damaged: a table's values are not finite, rising and different from 0")
    return np.concatenate([np.zeros(1, np.float32), floats])


def _multiples(values: np.ndarray) -> tuple[int, np.ndarray] | None:
    """(the pattern of a step, integers) whose float32 products are the values, where these are few bits each."""
    least = float(np.abs(values).min())
    for divisor in range(1, 5):
        integers = np.rint(values.astype(np.float64) * (divisor / least))
        largest = np.abs(integers).max()
        if largest >= 1 << 15:
            return None
        exact = np.float32(values[np.abs(values).argmax()] / np.float32(largest))
        exact = np.abs(exact)
        for step in (exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(np.inf))):
            if (step * integers.astype(np.float32)).tobytes() == values.tobytes() and (np.diff(integers) > 0).all():
                return int(step.view(np.uint32)), integers.astype(np.int64)
    return None


def _sortable(values: np.ndarray) -> np.ndarray:
    """Integers in the order of the floats, none of them 0: the magnitude's pattern with the sign."""
    pattern = values.view(np.uint32).astype(np.int64)
    return np.where(pattern >> 31 > 0, -(pattern & (1 << 31) - 1), pattern)


def _unsortable(integers: np.ndarray) -> np.ndarray:
    return _floats(np.where(integers < 0, 1 << 31, 0) | np.abs(integers))


def _floats(patterns: np.ndarray) -> np.ndarray:
    return patterns.astype(np.uint32).view(np.float32)


def _code_order(coder: Coder, number: int, layer: QuantizedLayer | None) -> np.ndarray | None:
    """The order of a code book that was not sorted: each code as its rank among those that have not yet come."""
    given = None if layer is None else np.array([layer.order is not None], np.int64)
    if not _code_bits(coder, np.array([1]), given)[0]:
        return None
    left = list(range(1, number + 1))
    ranks = None
    if layer is not None and layer.order is not None:
        ranks = np.empty(number, np.int64)
        for place, code in enumerate(layer.order.tolist()):
            ranks[place] = left.index(code)
            left.remove(code)
        left = list(range(1, number + 1))
    ranks = coder.uniform(number - np.arange(number), ranks)
    return np.array([left.pop(rank) for rank in ranks.tolist()], np.int16)


def _code_adaptive(coder: Coder, symbols: Symbols, number: int, given: np.ndarray | None) -> np.ndarray:
    result = np.zeros(number, np.int64)
    for block in blocks(number):
        context = np.zeros(len(result[block]), np.int64)
        result[block] = symbols.code(coder, context, None if given is None else given[block])
    if result.max(initial=0) >= symbols.number:
        raise UserError("damaged: a float's exponent or length is out of bounds")
    return result


def _code_bits(coder: Coder, width_B: np.ndarray, value_B: np.ndarray | None) -> np.ndarray:
    """Integers of so many bits each, 0 to 32, all equally probable: their lowest 11 bits first, then the next."""
    result = np.zeros(len(width_B), np.int64)
    for low in range(0, int(width_B.max(initial=0)), PIECE):
        number = 1 << np.clip(width_B - low, 0, PIECE)
        piece = None if value_B is None else (value_B >> low) % number
        result |= coder.uniform(number, piece) << low
    return result
