"""A decoder of .sqz files written from docs/format.md alone: one symbol at a time, with nothing but integers."""

import math
import struct
import zlib


class Coder:
    def __init__(self, stream):
        self.x = list(struct.unpack_from("<64I", stream))
        self.words = iter(struct.unpack_from(f"<{(len(stream) - 256) // 2}H", stream, 256))

    def take(self, j, slot, start, size):
        x = size * (self.x[j % 64] >> 14) + slot - start
        self.x[j % 64] = x << 16 | next(self.words) if x < 65536 else x

    def uniform(self, numbers):
        result = []
        for j, m in enumerate(numbers):
            slot = self.x[j % 64] & 16383
            v = ((slot + 1) * m - 1) // 16384
            start = 16384 * v // m
            self.take(j, slot, start, 16384 * (v + 1) // m - start)
            result.append(v)
        return result

    def choose(self, tables):
        """Of each symbol, its alternatives' starts and 16384."""
        result = []
        for j, starts in enumerate(tables):
            slot = self.x[j % 64] & 16383
            k = max(k for k in range(len(starts) - 1) if starts[k] <= slot)
            self.take(j, slot, starts[k], starts[k + 1] - starts[k])
            result.append(k)
        return result

    def bits(self, widths):
        result = [0] * len(widths)
        for low in range(0, max(widths, default=0), 11):
            pieces = self.uniform([1 << min(11, max(0, b - low)) for b in widths])
            result = [v | piece << low for v, piece in zip(result, pieces, strict=True)]
        return result


def starts(weights):
    sums = [sum(weights[:k]) for k in range(len(weights) + 1)]
    return [s * (16384 - len(weights)) // sums[-1] + k for k, s in enumerate(sums)]


def blocks(number):
    begin = 0
    while begin < number:
        end = min(number, begin + min(max(begin, 32), 512))
        yield range(begin, end)
        begin = end


class Model:
    def __init__(self, number, contexts=1):
        self.units = [math.ceil(number / 16)]
        while self.units[-1] > 1:
            self.units.append(math.ceil(self.units[-1] / 16))
        self.first = [[0] * math.ceil(number / self.units[0]) for _ in range(contexts)]
        self.later = [{} for _ in self.units]

    def decode(self, coder, contexts):
        g = [1 + sum(column) for column in zip(*self.first, strict=True)]
        digits = coder.choose(
            [starts([f * sum(g) + 128 * n for f, n in zip(self.first[c], g, strict=True)]) for c in contexts]
        )
        for c, digit in zip(contexts, digits, strict=True):
            self.first[c][digit] += 1
        symbols, places = [digit * self.units[0] for digit in digits], digits
        for d in range(1, len(self.units)):
            radix = math.ceil(self.units[d - 1] / self.units[d])
            counts = [self.later[d].setdefault(p, [2] * radix) for p in places]
            digits = coder.choose([starts(h) for h in counts])
            for h, digit in zip(counts, digits, strict=True):
                h[digit] += 1
            symbols = [s + digit * self.units[d] for s, digit in zip(symbols, digits, strict=True)]
            places = [p * radix + digit for p, digit in zip(places, digits, strict=True)]
        return symbols

    def decode_all(self, coder, number):
        return [symbol for block in blocks(number) for symbol in self.decode(coder, [0] * len(block))]


class Contexts:
    LEAST = 136, 152, 171, 192, 215, 242, 271, 304, 342, 384, 431, 483

    def __init__(self, S, N):
        self.S, self.N = S, N
        self.sums = {}

    def of(self, where):
        row, column, tap, kernel = (
            min(4096, (s * self.N + a * self.S) * 256 // ((c + a) * self.S))
            for (s, c), a in zip((self.sums.get(key, (0, 0)) for key in where), (20, 20, 20, 2), strict=True)
        )
        return sum(t <= (((row * column >> 8) * tap) >> 8) * kernel >> 8 for t in self.LEAST)

    def add(self, where, quantity):
        for key in where:
            s, c = self.sums.get(key, (0, 0))
            self.sums[key] = s + quantity, c + 1
        self.S, self.N = self.S + quantity, self.N + 1


def as_float(pattern):
    return struct.unpack("<f", struct.pack("<I", pattern))[0]


def decode_layer(coder, H, W, I, O, exponents, lengths):  # noqa: E741
    """(weights in the order of o, i, h, w, biases)."""
    (z,) = coder.bits([5])
    fields = exponents.decode_all(coder, O), coder.bits([1] * O), coder.bits([23 - z] * O)
    bias = [as_float(sign << 31 | e << 23 | m << z) for e, sign, m in zip(*fields, strict=True)]
    (K,) = coder.bits([12])
    values = [0.0]
    if K:
        (step,), (first,) = coder.bits([32]), coder.bits([32])
        integers = [first - (first >> 31 << 32)]
        length = lengths.decode_all(coder, K - 1)
        for L, rest in zip(length, coder.bits([L - 1 for L in length]), strict=True):
            integers.append(integers[-1] + (1 << L - 1) + rest)
        for n in integers:
            product = struct.unpack("<f", struct.pack("<f", as_float(step) * n))[0]  # exact in 64 bits, then rounded
            values.append(product if step else math.copysign(as_float(abs(n)), n))
    if coder.bits([1])[0]:
        coder.uniform(range(K, 0, -1))
    weights = [0.0] * (O * I * H * W)
    if K:
        decode_weights(coder, H * W, I, O, values, weights)
    return weights, bias


def decode_weights(coder, T, I, O, values, weights):  # noqa: E741
    leap = 40503 * O * I // 65536 | 1
    while math.gcd(leap, O * I) != 1:
        leap += 1
    visited = [(q * leap % (O * I), t) for t in range(T) for q in range(O * I)]
    where = {(k, t): (("row", k // I), ("column", k % I), ("tap", t), ("kernel", k)) for k, t in visited}
    contexts, kept = Contexts(1, 2), []
    counts = [[0, 0] for _ in range(13)]
    for block in blocks(len(visited)):
        c = [contexts.of(where[visited[j]]) for j in block]
        share = [
            min(16320, max(64, (b * contexts.N + 20 * contexts.S) * 16384 // ((a + 20) * contexts.N)))
            for a, b in counts
        ]
        found = coder.choose([[0, 16384 - share[context], 16384] for context in c])
        for j, context, bit in zip(block, c, found, strict=True):
            counts[context][0] += 1
            counts[context][1] += bit
            contexts.add(where[visited[j]], bit)
            kept += [visited[j]] * bit
    K, n = len(values) - 1, sum(v < 0 for v in values)
    contexts, model = Contexts(max(1, K // 4), 1), Model(K, 13)
    for block in blocks(len(kept)):
        symbols = model.decode(coder, [contexts.of(where[kept[j]]) for j in block])
        for j, symbol in zip(block, symbols, strict=True):
            code = symbol + 1
            contexts.add(where[kept[j]], min(255, code - n if code > n else n + 1 - code))
            k, t = kept[j]
            weights[k * T + t] = values[code]


def decode(content):
    """{layer: (weights in the order of o, i, h, w, biases)}."""
    magic, version, deflated, inflated, streamed = struct.unpack_from("<8s4I", content)
    assert magic == b"\x89SQZ\r\n\x1a\n" and version == 1 and 24 + deflated + streamed + 4 == len(content)
    assert zlib.crc32(content[:-4]) == struct.unpack("<I", content[-4:])[0]
    text = zlib.decompress(content[24 : 24 + deflated])
    assert len(text) == inflated
    coder, exponents, lengths = Coder(content[24 + deflated : -4]), Model(256), Model(33)
    layers = {}
    for line in text.decode().partition("\n\n")[0].splitlines():
        name, *shape = line.split()
        layers[name] = decode_layer(coder, *map(int, shape), exponents, lengths)
    assert coder.x == [65536] * 64 and not list(coder.words)
    return layers
