"""torch.save's files are read without torch and without running them."""

import io
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from weight_files import (
    assert_same_params,
    dict_pickle,
    integer,
    integers,
    state_dict,
    tensor_pickle,
    text,
    tiny_arch,
    tiny_weights,
    torch_legacy,
    torch_zip,
)

from squeezenet_jax import weights
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.formats import pickle_values

ROOT = Path(__file__).parents[2]
ENCODERS = {"zip": torch_zip, "legacy": torch_legacy}


@pytest.fixture
def write(tmp_path):
    def write(content):
        (tmp_path / "w.pth").write_bytes(content)
        return tmp_path / "w.pth"

    return write


def refused(path, message):
    with pytest.raises(UserError, match=message) as caught:
        weights.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encode", ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize("kind", ["Float", "Half", "Double"])
@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
def test_state_dict(write, version, kind, encode):
    first = tiny_weights(version)
    path = write(encode(state_dict(first, kind), kind))
    again = weights.load(path)
    assert_same_params(again.params, first.params)
    assert again.arch == tiny_arch(version, geometry="torchvision")
    assert weights.load(path, preprocessing="caffe").arch == tiny_arch(version, geometry="caffe")


@pytest.mark.parametrize("encode", ENCODERS.values(), ids=ENCODERS)
def test_bfloat16(write, encode):
    first = tiny_weights()
    upper = {key: (x.view(np.uint32) >> 16).astype(np.uint16) for key, x in state_dict(first).items()}
    assert_same_params(weights.load(write(encode(upper, "BFloat16"))).params, first.params)


@pytest.mark.parametrize("encode", ENCODERS.values(), ids=ENCODERS)
def test_any_strides_are_followed(write, encode):
    first = tiny_weights()
    fortran = {key: np.asfortranarray(x) for key, x in state_dict(first).items()}
    assert_same_params(weights.load(write(encode(fortran))).params, first.params)


def test_training_checkpoint_with_data_parallel_names(write):
    first = tiny_weights()
    tensors = {f"module.{key}": x for key, x in state_dict(first).items()}
    inner = dict_pickle(tensors)[2:-1]
    outer = b"\x80\x02}(" + text("epoch") + integer(3) + text("state_dict") + inner + b"u."
    assert_same_params(weights.load(write(torch_zip(tensors, content=outer))).params, first.params)


def test_torch_itself(tmp_path):
    """Cross-check with real files, where torch happens to be installed; it is no requirement."""
    torch = pytest.importorskip("torch")
    first = tiny_weights()
    state = {key: torch.from_numpy(x) for key, x in state_dict(first).items()}
    for is_zip in (True, False):
        torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=is_zip)
        assert_same_params(weights.load(tmp_path / "w.pth").params, first.params)


class Evil:
    """Unpickled, it creates the file `path` through a shell."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("encode", ["zip", "legacy", "bare"])
def test_code_is_refused_and_not_run(write, tmp_path, protocol, encode):
    target = tmp_path / "executed"
    evil = pickle.dumps({"features.0.weight": Evil(target)}, protocol)
    pickle.loads(evil)
    assert target.exists()  # it does run code where pickle loads it
    target.unlink()
    refused(write(evil if encode == "bare" else ENCODERS[encode]({}, content=evil)), "refused|damaged|pickle")
    assert not target.exists()


@pytest.mark.parametrize(
    "evil",
    [
        b"cos\nsystem\n(X\x04\x00\x00\x00truetR.",  # a global
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # the same by STACK_GLOBAL
        b"(X\x04\x00\x00\x00trueios\nsystem\n.",  # INST
        b"(cos\nsystem\nX\x04\x00\x00\x00trueo.",  # OBJ
        b"\x82\x01.",  # EXT1
        b"ctorch._utils\n_rebuild_tensor\n.",
        b"cbuiltins\neval\n.",
        b"ctorch\nFloatStorage.__init__\n.",
        b"Pfile\n.",  # PERSID
        b"cnumpy\nload\n)\x81.",
    ],
)
def test_every_way_to_name_code_gives_a_thing_that_is_refused_where_it_is_needed(write, evil):
    value = pickle_values.read_pickle(io.BytesIO(evil), 1 << 20)
    assert isinstance(value, pickle_values.Opaque | pickle_values.Global)
    refused(write(torch_zip({}, content=evil)), "refused")
    wanted = b"}" + text("features.0.weight")
    refused(write(torch_zip({}, content=wanted + evil.removeprefix(b"\x80\x04").removesuffix(b".") + b"s.")), "refused")


BOMBS = {
    "memo index": b"\x80\x02}r\xff\xff\xff\xff.",
    "byte array": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b".",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b".",
    "digits": b"I" + b"9" * 100_000 + b"\n.",
    "nested tuples as a key": b"\x80\x02})" + b"2\x86" * 100 + b"Ns.",
    "nested tuples in a comparison": b"\x80\x02ccollections\nOrderedDict\n)" + b"2\x86" * 100 + b"R.",
    "deep nesting": b"\x80\x02)" + b"\x85" * 400_000 + b".",
    "endless": b"\x80\x02" + b"N" * 600_000,
    "long": b"\x80\x02}" * 600_000,
    "endless objects": b"\x80\x02ca\nb\nq\x00" + b"h\x00)\x81" * 700_000 + b".",
    "colliding keys": b"\x80\x02}("
    + b"".join(b"\x8a\x0a" + (k * ((1 << 61) - 1)).to_bytes(10, "little") + b"N" for k in range(1, 100_000))
    + b"u.",
    "a list copied for ever": b"\x80\x02ccollections\nOrderedDict\nq\x01]("
    + b"".join(b"X\x05\0\0\0%05dN\x86" % i for i in range(100_000))
    + b"eq\x02"
    + b"h\x01h\x02\x85R" * 300_000
    + b".",
    "a key in every path": b"\x80\x02}" + (b"X\0\0\x10\0" + b"a" * (1 << 20) + b"}") * 20 + b"s" * 20 + b".",
    "branching modules": b"\x80\x02"
    + b"ca\nb\n)\x81}b"
    + b"".join(b"q\x03ca\nb\n)\x81}(X\x01\0\0\0ah\x03X\x01\0\0\0bh\x03ub" for _ in range(60))
    + b".",
    "prefixes without end": b"\x80\x02}("
    + b"".join(b"X" + struct.pack("<I", 24) + b"%06d.features.0.weight" % i + b"N" for i in range(100_000))
    + b"u.",
}


def test_bombs_are_refused_in_little_memory(tmp_path):
    """In a process that may not use more than 1 GiB of addresses, and within ten seconds each."""
    paths = []
    for name, bomb in BOMBS.items():
        for kind, content in (("zip", torch_zip({}, content=bomb)), ("legacy", torch_legacy({}, content=bomb))):
            paths.append(tmp_path / f"{name}.{kind}.pth")
            paths[-1].write_bytes(content)
    code = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from squeezenet_jax import weights
from squeezenet_jax.system.errors import UserError
for path in sys.argv[1:]:
    start = time.monotonic()
    try:
        weights.load(path)
    except UserError as error:
        assert str(error).startswith(path) and time.monotonic() - start < 10, path
        print(path)
"""
    command = [sys.executable, "-c", code, *map(str, paths)]
    env = {"OPENBLAS_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (result.returncode, result.stdout.splitlines()) == (0, list(map(str, paths))), result.stderr


def one_tensor(offset=0, shape=(4,), strides=(1,), numel=4, kind="Float", key="0"):
    """The state dict {"features.0.bias": tensor} with any claims about that tensor."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key) + text("cpu") + integer(numel)
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + integer(offset)
    tensor += integers(shape) + integers(strides) + b"\x89}tR"
    return tensor


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"offset": 1}, "outside"),
        ({"strides": (2,)}, "outside"),
        ({"strides": (-1,)}, "damaged"),
        ({"offset": -1}, "damaged"),
        ({"numel": 5}, "bytes instead of"),
        ({"numel": -1}, "damaged"),
        ({"key": "77"}, "no member|two ways"),
        ({"key": "../version"}, "no member|two ways"),
        ({"kind": "Long"}, "refused"),
        ({"shape": (2, 2)}, "damaged"),
        ({"shape": (1 << 30,), "strides": (0,)}, "wrong shape"),
    ],
)
def test_tensors_that_lie_about_their_storage_are_refused(write, claims, message):
    first = state_dict(tiny_weights())
    assert first["features.0.bias"].shape == (4,)
    items = b""
    for i, (name, x) in enumerate(first.items()):
        honest = tensor_pickle(x, str(i), "Float", legacy=False)
        key = {"key": str(i), **claims}
        items += text(name) + (one_tensor(**key) if name == "features.0.bias" else honest)
    refused(write(torch_zip(first, content=b"\x80\x02}(" + items + b"u.")), message)


def replaced_bias(bias, **claims):
    """The pickle and the storages of a network whose features.0.bias is a tensor of these claims in `bias`."""
    arrays = {**state_dict(tiny_weights()), "features.0.bias": bias}
    items = b""
    for i, (name, x) in enumerate(arrays.items()):
        is_bias = name == "features.0.bias"
        items += text(name) + (
            one_tensor(key=str(i), **claims) if is_bias else tensor_pickle(x, str(i), "Float", False)
        )
    return torch_zip(arrays, content=b"\x80\x02}(" + items + b"u.")


def test_a_tensor_begins_at_its_offset_in_its_storage(write):
    storage = np.arange(9, dtype=np.float32)
    path = write(replaced_bias(storage, offset=2, strides=(2,), numel=9))
    np.testing.assert_array_equal(weights.load(path).params["conv1"]["bias"], [2, 4, 6, 8])


def test_a_small_storage_is_not_blown_up(write):
    """By strides of 0, with which every shape lies inside of any storage."""
    refused(write(replaced_bias(np.ones(1, np.float32), strides=(0,), numel=1)), "outside of its storage of 1 values")


def test_a_zip_bomb_is_refused(write):
    tensors = state_dict(tiny_weights())
    refused(write(torch_zip(tensors, compression=zipfile.ZIP_DEFLATED)), "compressed")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i in range(20_001):
            archive.writestr(str(i), "")
    refused(write(buffer.getvalue()), "more than 20000 members")


@pytest.mark.parametrize(
    ("value", "message"),
    [([1], "not a state dict"), ({"a": 1}, "not a state dict"), ({1: 2}, "not a state dict"), ({}, "is missing")],
)
def test_pickles_of_something_else_are_refused(write, value, message):
    refused(write(torch_zip({}, content=pickle.dumps(value, 2))), message)


def test_damaged_archives_are_refused(write):
    tensors = state_dict(tiny_weights())
    content = torch_zip(tensors)
    refused(write(content[: len(content) // 2]), "not a valid zip archive")
    refused(write(content.replace(b"little", b"big   ")), "byte order|not a valid zip")
    refused(write(content.replace(b"data.pkl", b"data.txt")), "0 members are called data.pkl")
    legacy = torch_legacy(tensors)
    refused(write(legacy[:-1]), "truncated")
    refused(write(legacy + b"\0"), "left behind")


def test_legacy_files_that_contradict_themselves_are_refused(write):
    tensors = state_dict(tiny_weights())
    content = torch_legacy(tensors)
    keys = pickle.dumps([str(i) for i in range(len(tensors))], 2)
    sizes = struct.pack("<q", tensors["features.0.weight"].size)
    data = content.index(keys) + len(keys)
    assert content[data : data + 8] == sizes
    for changed, message in (
        (pickle.dumps(7, 2) + content, "a pickle, but not one of torch.save"),
        (content.replace(b"M\xe9\x03.", b"M\xea\x03.", 1), "its first pickles are not torch's"),
        (content.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89", 1), "not little-endian"),
        (content.replace(keys, pickle.dumps(["77"], 2)), "list of storages does not match"),
        (content.replace(keys, keys.replace(b"X\x01\0\0\x000", b"X\x01\0\0\0x")), "list of storages does not match"),
        (content[:data] + struct.pack("<q", 1) + content[data + 8 :], "storage 0 claims 1 values"),
    ):
        assert changed != content
        refused(write(changed), message)


def test_an_archive_of_two_files_is_refused(write):
    buffer = io.BytesIO(torch_zip(state_dict(tiny_weights())))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("second/data.pkl", b"}.")
    refused(write(buffer.getvalue()), "2 members are called data.pkl")
