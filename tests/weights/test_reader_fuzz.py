"""Whatever bytes a reader is given, the answer is `Weights` or one line: no crash, no hang, no great memory.

Each target starts from a valid small file and damages it, or builds something from the format's own pieces. By default
25 inputs for each target; `-m slow` runs 500.
"""

import contextlib
import io
import json
import pickle
import pickletools
import re
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weight_files import (
    Call,
    Name,
    Tensor,
    caffemodel,
    checkpoint,
    deep_compression,
    dict_pickle,
    sparse,
    state_dict,
    tensors,
    tiny_weights,
    torch_legacy,
    torch_zip,
)

from squeezenet_jax.network import architecture
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights import bundle
from squeezenet_jax.weights.formats import caffemodel as caffemodel_reader
from squeezenet_jax.weights.formats import compressed as sqz
from squeezenet_jax.weights.formats import deep_compression as net
from squeezenet_jax.weights.formats import infer, metadata, pickle_values, safetensors_file, torch_pickle
from squeezenet_jax.weights.quantized import from_weights

EXAMPLES, MANY = 25, 500
MAX_SECONDS, MAX_GROWTH_MIB = 5.0, 300
WISHES = infer.Wishes()
TINY = tiny_weights()
STATE = state_dict(TINY)
SPARSE = sparse(TINY)
ARGS = Call(Name("argparse", "Namespace"), (), {"lr": 0.1, "seen": {1, 2}}, is_new=True)
CHECKPOINT = {"model": tensors(STATE), "step": Tensor(np.array(3), "Long"), "args": ARGS, "loss": [0.5, None] * 50}


def read_net(content):
    return net.decode(content, SPARSE.arch, channels=3, num_classes=SPARSE.num_classes)


def reader(module):
    return lambda content: module.read(content, WISHES, {})


def safetensors_with_header(header):
    return struct.pack("<Q", len(header)) + header


OWN = safetensors_file.write(TINY, "squeezenet_jax")
SEEDS = {
    "own": (OWN, reader(safetensors_file)),
    "torchvision": (safetensors.numpy.save(state_dict(TINY, "Half")), reader(safetensors_file)),
    "caffemodel": (caffemodel(TINY.params, sums=4), reader(caffemodel_reader)),
    "old caffemodel": (caffemodel(TINY.params, old=True), reader(caffemodel_reader)),
    "zip": (torch_zip(STATE), reader(torch_pickle)),
    "legacy": (torch_legacy(STATE), reader(torch_pickle)),
    "checkpoint": (checkpoint(CHECKPOINT, legacy=True), reader(torch_pickle)),
    "net": (deep_compression(SPARSE.params), read_net),
    "sqz": (sqz.write(SPARSE), reader(sqz)),
}
# Lengths and counts that files have lied with.
LIES = [0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]


@st.composite
def damaged(draw, content):
    """The content after one to four damages; places near the ends, where headers and indexes are, come up more."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        size = len(data)
        near = st.integers(0, min(size, 600)) | st.integers(max(0, size - 600), size)
        place = draw(near | st.integers(0, size))
        kind = draw(st.sampled_from(["truncate", "flip", "lie", "insert", "delete", "repeat", "swap"]))
        length = draw(st.integers(1, 64))
        if kind == "truncate":
            del data[place:]
        elif kind == "flip" and place < size:
            data[place] ^= draw(st.integers(1, 255))
        elif kind == "lie":
            width = draw(st.sampled_from([1, 2, 4, 8]))
            lie = draw(st.sampled_from(LIES)) & ((1 << 8 * width) - 1)
            data[place : place + width] = lie.to_bytes(width, draw(st.sampled_from(["little", "big"])))
        elif kind == "insert":
            data[place:place] = draw(st.binary(max_size=16))
        elif kind == "delete":
            del data[place : place + length]
        elif kind == "repeat":
            data[place:place] = data[place : place + length]
        else:
            other = draw(st.integers(0, size))
            data[place : place + length], data[other : other + length] = (
                data[other : other + length],
                data[place : place + length],
            )
    return bytes(data)


def peak_memory():
    """The most that this process has used since `forget_peak`, in KiB."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def forget_peak():
    """So that the peak is no longer what everything so far needed (proc(5), clear_refs), where the kernel allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def check(read, content):
    """The property itself."""
    forget_peak()
    before = peak_memory()
    start = time.monotonic()
    try:
        result = read(content)
    except UserError as error:
        assert str(error) and str(error).isprintable() and len(str(error)) < 1500
    else:
        assert result is not None
    assert time.monotonic() - start < MAX_SECONDS
    assert peak_memory() - before < MAX_GROWTH_MIB << 10


def run(strategy, read, examples):
    def property_(content):
        check(read, content)

    health = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    options = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=health)
    options(given(strategy)(property_))()


# -- pieces: inputs that a random damage of a whole file would rarely make ---------------------------------------------

OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
GLOBAL_NAMES = [f"c{name.replace(' ', chr(10))}\n".encode() for name in pickle_values.GLOBALS]
PIECES = [
    b"}",
    b")",
    b"]",
    b"(",
    b"t",
    b"u",
    b"s",
    b"b",
    b"R",
    b"Q",
    b"q\0",
    b"h\0",
    b"K\1",
    b"X\1\0\0\0a",
    *GLOBAL_NAMES,
]
STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\4tQ"

pickles = st.lists(
    st.sampled_from([*PIECES, STORAGE]) | st.sampled_from(OPCODES) | st.binary(max_size=4), max_size=60
).map(lambda parts: b"\x80\x02" + b"".join(parts) + b".")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def descriptions(draw):
    """The metadata with some of their values replaced."""
    value = json.loads(metadata.describe(TINY))
    for _ in range(draw(st.integers(1, 3))):
        node = value
        while isinstance(node, dict | list) and len(node):
            key = draw(st.sampled_from(sorted(node)) if isinstance(node, dict) else st.integers(0, len(node) - 1))
            if draw(st.booleans()) or not isinstance(node[key], dict | list):
                node[key] = draw(json_values)
                break
            node = node[key]
    return json.dumps(value)


def with_description(text):
    flat = {name: np.ascontiguousarray(x) for name, x in bundle.flatten(TINY.params).items()}
    return safetensors.numpy.save(flat, {metadata.METADATA_KEY: text})


def read_pickle(content):
    pickle_values.read_pickle(io.BytesIO(content), 1 << 20)
    return True


def headers():
    """A .safetensors header that is rewritten with its length set right."""
    length = int.from_bytes(OWN[:8], "little")
    return damaged(OWN[8 : 8 + length]).map(lambda header: safetensors_with_header(header) + OWN[8 + length :])


def with_checksum(content):
    """Past the check that would refuse nearly every damage of a compressed file."""
    return content[:-4] + struct.pack("<I", zlib.crc32(content[:-4]))


def sqz_with_description(text):
    """A description of the fuzzer's in a compressed file that is right otherwise."""
    content, _ = SEEDS["sqz"]
    deflated, _, streamed = struct.unpack_from("<3I", content, 12)
    lines = zlib.decompress(content[sqz.HEADER.size : sqz.HEADER.size + deflated]).partition(b"\n\n")[0]
    whole = lines + b"\n\n" + text.encode()
    data = zlib.compress(whole)
    head = sqz.HEADER.pack(sqz.MAGIC, sqz.VERSION, len(data), len(whole), streamed)
    return with_checksum(head + data + content[sqz.HEADER.size + deflated :])


def sqz_with_stream(stream):
    content, _ = SEEDS["sqz"]
    deflated, inflated, _ = struct.unpack_from("<3I", content, 12)
    head = sqz.HEADER.pack(sqz.MAGIC, sqz.VERSION, deflated, inflated, len(stream))
    return with_checksum(head + content[sqz.HEADER.size : sqz.HEADER.size + deflated] + stream + bytes(4))


def zipped(content):
    return torch_zip(STATE, content=content)


TARGETS = {
    **{f"damaged {name}": (damaged(content), read) for name, (content, read) in SEEDS.items()},
    **{f"random bytes as {name}": (st.binary(max_size=400), read) for name, (_, read) in SEEDS.items()},
    **{
        f"random end of {name}": (st.binary(max_size=400).map(lambda b, c=content: c[:20] + b), read)
        for name, (content, read) in SEEDS.items()
    },
    "safetensors headers": (headers(), reader(safetensors_file)),
    "descriptions": (descriptions().map(with_description), reader(safetensors_file)),
    "sqz with its checksum right": (damaged(SEEDS["sqz"][0]).map(with_checksum), reader(sqz)),
    "sqz streams": (damaged(sqz.encode(from_weights(SPARSE, 255))).map(sqz_with_stream), reader(sqz)),
    "sqz descriptions": (descriptions().map(sqz_with_description), reader(sqz)),
    "pickles in zip": (damaged(dict_pickle(STATE)).map(zipped), reader(torch_pickle)),
    "pickle programs": (pickles, read_pickle),
    "pickled values": (json_values.map(pickle.dumps), read_pickle),
    "caffe messages": (
        st.lists(
            st.binary(max_size=30) | st.sampled_from([b"\xa2\x06", b"\x3a", b"\x0a", b"\x2a\x04"]), max_size=20
        ).map(b"".join),
        reader(caffemodel_reader),
    ),
}


@pytest.mark.parametrize("target", TARGETS)
def test_any_input_gives_weights_or_one_line(target):
    run(*TARGETS[target], EXAMPLES)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_any_of_many_inputs_gives_weights_or_one_line(target):
    run(*TARGETS[target], MANY)


@pytest.mark.parametrize("name", SEEDS)
def test_every_truncation_is_refused(name):
    content, read = SEEDS[name]
    for length in {*range(0, min(len(content), 300)), *range(0, len(content), 997), len(content) - 1}:
        with pytest.raises(UserError):
            read(content[:length])


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_are_valid(name):
    content, read = SEEDS[name]
    assert read(content) is not None


def test_a_published_net_is_refused_when_damaged():
    """Through the entrance that users have, whose table is v1.0 with 1000 classes."""
    content = struct.pack("<26I", *[0] * 26)
    for shape in bundle.parameter_shapes(architecture.V1_0, channels=3, num_classes=1000).values():
        content += bytes(4 * (256 + shape[0])) if len(shape) == 1 else b""
    assert reader(net)(content).num_classes == 1000
    run(damaged(content), reader(net), EXAMPLES)
