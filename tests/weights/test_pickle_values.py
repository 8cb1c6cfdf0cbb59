"""Single opcodes and calls of a pickle: what becomes of them, without any file around them."""

import io
import pickle

import pytest
from weight_files import integer, integers, text

from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.formats import pickle_values
from squeezenet_jax.weights.formats.pickle_values import Global, Opaque, Storage, Tensor, read_pickle


def read(content):
    return read_pickle(io.BytesIO(content + b"."), 1 << 20)


def storage(key="0", numel=4, view=b""):
    kind = b"ctorch\nFloatStorage\n"
    return b"(" + text("storage") + kind + text(key) + text("cpu") + integer(numel) + view + b"tQ"


def arguments(offset=None, shape=None, strides=None, more=b""):
    """The tuple that torch rebuilds a tensor of four values from."""
    given = ((offset, integer(0)), (shape, integers([4])), (strides, integers([1])))
    return b"(" + storage() + b"".join(default if x is None else x for x, default in given) + b"\x89}" + more + b"t"


def rebuilt(**claims):
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments(**claims) + b"R"


TENSOR = Tensor("F32", (4,), Storage("torch FloatStorage", "0", 4), 0, (1,))
HUGE = b"\x8a\x0a" + (1 << 70).to_bytes(10, "little")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_those_that_pickle_reads(protocol):
    names = ["a", "b"]
    value = {"names": names, "again": [names, names[::-1]], "x": (1, (2.5, None), True, -(1 << 80)), 7: (), "c": {}}
    assert read(pickle.dumps(value, protocol)[:-1]) == value


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"(" + text("a") + b"K\1" + text("b") + b"K\2d", {"a": 1, "b": 2}),  # DICT
        (b"ccollections\nOrderedDict\n}" + text("a") + b"K\1s\x85R", {"a": 1}),  # of a dict
        (b"c__builtin__\ndict\n)R", {}),  # Python 2's name
        (
            b"(" + text("module") + b"cnets\nNet\n" + text("nets.py") + text("class Net: ...") + b"tQ",
            Global("nets Net"),
        ),
        (rebuilt(), TENSOR),
        (b"ctorch._utils\n_rebuild_parameter_with_state\n(" + rebuilt() + b"\x89}}tR", TENSOR),
        (
            b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nctorch\nTensor\n"
            + arguments()
            + b"}tR",
            TENSOR,
        ),
    ],
)
def test_what_torch_writes_becomes_a_value_or_a_record(content, value):
    assert read(content) == value


def test_a_tensor_of_a_type_that_has_no_storage_is_not_taken_for_its_storages():
    tensor = read(b"ctorch._utils\n_rebuild_tensor_v3\n" + arguments(more=b"ctorch\nuint32\n") + b"R")
    assert tensor.kind == "torch uint32"


def test_a_view_of_a_storage_is_no_storage():
    assert read(storage(view=b"N")) == TENSOR.storage
    view = read(storage(view=b"(" + text("1") + integer(0) + integer(4) + b"t"))
    assert isinstance(view, Opaque)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"}(" + text("a") + b"N" + text("a") + b"Nu", "a occurs twice"),
        (storage("0", 4) + storage("0", 5) + b"\x86", "storage 0 is described in two ways"),
        (rebuilt(offset=HUGE), "damaged"),
        (rebuilt(shape=b"(" + HUGE + b"t"), "damaged"),
        (rebuilt(strides=b"(" + HUGE + b"t"), "damaged"),
        (rebuilt(offset=b"\x88"), "damaged"),  # True
        (rebuilt(shape=integers([2, 2])), "damaged"),
        (b"K\1K\2\x93", "damaged"),  # a global without a name
        (b"(", "damaged"),
        (b"N(\x85", "damaged"),
        (b"(q\0", "damaged"),
    ],
)
def test_what_contradicts_itself_is_refused(content, message):
    with pytest.raises(UserError, match=message):
        read(content)


def test_the_limit_counts_from_where_the_pickle_begins():
    content = b"before" * 100 + b"N0" * 40 + b"N."
    for limit, fits in ((81, True), (80, False)):
        stream = io.BytesIO(content)
        stream.seek(600)
        if fits:
            assert read_pickle(stream, limit) is None and stream.tell() == len(content)
        else:
            with pytest.raises(UserError, match="too long"):
                read_pickle(stream, limit)


def test_a_short_pickle_of_too_many_opcodes_is_refused(monkeypatch):
    """Each may take a while; bytes alone would allow many more."""
    monkeypatch.setattr(pickle_values, "MAX_OPCODES", 100)
    assert read(b"N0" * 49 + b"N") is None
    with pytest.raises(UserError, match="too long"):
        read(b"N0" * 50 + b"N")
