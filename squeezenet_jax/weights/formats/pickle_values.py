"""The value that a pickle of tensors describes, found without unpickling: nothing in it is ever imported or called.

A restricted `pickle.Unpickler` would not be enough: with every global forbidden, opcodes alone can still fill the
memory (a memo index of 2**32, a byte array of any length) or hash for ever (nested tuples as a key). So this walks the
opcodes with `pickletools.genops`, which only decodes their arguments, and keeps a stack of its own. The calls that
rebuild a tensor or a dict become records of their arguments; every other call becomes an `Opaque`, a thing that has a
name and can do nothing. A checkpoint is full of them (arguments, devices, counters), and whoever needs what one of them
stands for refuses the file. Read next: `state_dicts.py`.
"""

import dataclasses
import io
import pickletools
import warnings
from typing import Any

from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import listing
from squeezenet_jax.weights.formats.infer import Described

# torch's storages: type as in .safetensors files, bytes of one value.
STORAGE_TYPES = {
    "torch FloatStorage": ("F32", 4),
    "torch DoubleStorage": ("F64", 8),
    "torch HalfStorage": ("F16", 2),
    "torch BFloat16Storage": ("BF16", 2),
    "torch LongStorage": ("I64", 8),
    "torch IntStorage": ("I32", 4),
    "torch ShortStorage": ("I16", 2),
    "torch CharStorage": ("I8", 1),
    "torch ByteStorage": ("U8", 1),
    "torch BoolStorage": ("BOOL", 1),
    "torch ComplexFloatStorage": ("C64", 8),
    "torch ComplexDoubleStorage": ("C128", 16),
    "torch QInt8Storage": ("QI8", 1),
    "torch QUInt8Storage": ("QU8", 1),
    "torch QInt32Storage": ("QI32", 4),
    "torch QUInt4x2Storage": ("QU4", 1),
    "torch QUInt2x4Storage": ("QU2", 1),
    "torch.storage UntypedStorage": ("bytes", 1),
    "torch UntypedStorage": ("bytes", 1),
}
REBUILD_TENSOR = {f"torch._utils {name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")}
REBUILD_PARAMETER = {f"torch._utils {name}" for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")}
REBUILD_SUBCLASS = "torch._tensor _rebuild_from_type_v2"  # function, type, arguments, state
DICTS = {"collections OrderedDict", "collections Counter", "collections defaultdict", "builtins dict"}
GLOBALS = {*STORAGE_TYPES, *REBUILD_TENSOR, *REBUILD_PARAMETER, REBUILD_SUBCLASS, *DICTS}
MAX_OPCODES = 1_000_000  # two seconds; histories have one for each number
MAX_NUMBER = 1 << 40
MAX_MEMO = 1 << 32


@dataclasses.dataclass(frozen=True)
class Storage:
    type: str  # torch's class
    key: str
    numel: int

    @property
    def itemsize(self) -> int:
        if self.type not in STORAGE_TYPES:
            raise UserError(f"has a storage of an unknown type, {listing([self.type.replace(' ', '.')])}")
        return STORAGE_TYPES[self.type][1]


@dataclasses.dataclass(frozen=True)
class Tensor(Described):
    storage: Storage
    offset: int
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Global:
    """A name, "module attribute", that is not looked up."""

    name: str


@dataclasses.dataclass(slots=True, eq=False)
class Opaque:
    """What a call that is not made would have given. `name` says of what, for people.

    items: of an object that was made from nothing: what was then put into it, if it is a kind of dict.
    state: its attributes, where the pickle sets any.
    """

    name: str
    items: dict[Any, Any] | None = None
    state: Any = None


class OddKey:
    """Stands for a key that is neither a str nor a small int: hashing it might take for ever."""

    def __str__(self) -> str:
        return "a key that is no name"


_MARK = object()
_PLAIN = {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"}
_PLAIN |= {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"}
_PLAIN |= {"STRING", "BINSTRING", "SHORT_BINSTRING"}  # Python 2's bytes, most of them text; `genops` decodes latin-1
_PLAIN |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUT, _GET = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = {"PROTO", "FRAME", "READONLY_BUFFER"}
_OPAQUE = {"EXT1": "copyreg", "EXT2": "copyreg", "EXT4": "copyreg", "PERSID": "persistent_load"}
_OPAQUE |= {"EMPTY_SET": "builtins set", "NEXT_BUFFER": "buffers"}


def read_pickle(stream: io.BytesIO, limit: int, storages: dict[str, Storage] | None = None) -> Any:
    """The value of the pickle at the stream's position, which moves behind it; `UserError` for a damaged one.

    Values are None, bool, int, float, str, bytes, list, tuple, dict with keys of str, int or `OddKey`, `Storage`,
    `Tensor`, `Global` and `Opaque`; they may contain themselves. A pickle that goes on for more than `limit` bytes is
    refused. Every storage it mentions is put into `storages`.
    """
    machine = _Machine({} if storages is None else storages)
    start = stream.tell()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about escapes in old text opcodes
            for count, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
                if count > MAX_OPCODES or (position or 0) - start > limit:
                    raise UserError("the pickle is too long for a checkpoint of this network")
                if opcode.name == "STOP":
                    return machine.pop()
                machine.step(opcode.name, argument)
    except UserError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        # IndexError and KeyError are an empty stack and an unknown memo; the others come from `genops`.
        raise UserError(f"a damaged pickle ({type(error).__name__})") from None
    raise UserError("a truncated pickle")


class _Machine:
    """Pickle's stack and memo."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self._storages = storages
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise IndexError
        return value

    def _top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise IndexError
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        values: list[Any] = []
        while (top := self._stack.pop()) is not _MARK:
            values.append(top)
        return values[::-1]

    def step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _PLAIN:
            stack.append(argument)
        elif name in _PUT:
            index = len(self._memo) if argument is None else argument
            _need(0 <= index < MAX_MEMO)
            self._memo[index] = self._top()
        elif name in _GET:
            stack.append(self._memo[argument])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _TUPLES:
            stack.append(tuple(reversed([self.pop() for _ in range(_TUPLES[name])])))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name in ("EMPTY_LIST", "LIST"):
            stack.append(self._pop_to_mark() if name == "LIST" else [])
        elif name in ("EMPTY_DICT", "DICT"):
            items = self._pop_to_mark() if name == "DICT" else []
            stack.append({})
            _set_items(stack[-1], items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop_to_mark() if name == "SETITEMS" else [self.pop(), self.pop()][::-1]
            _set_items(self._top(), items)
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            values = [self.pop()] if name == "APPEND" else self._pop_to_mark()
            _need(isinstance(self._top(), list | Opaque))
            if isinstance(stack[-1], list):
                stack[-1].extend(values)
        elif name == "GLOBAL":
            stack.append(Global(argument.replace("__builtin__ ", "builtins ")))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            _need(isinstance(module, str) and isinstance(attribute, str))
            stack.append(Global(f"{module} {attribute}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = self.pop(), self.pop()
            stack.append(_call(function, arguments))
        elif name == "BUILD":  # also a state dict's `_metadata`: versions of modules, of no use here
            state = self.pop()
            if isinstance(self._top(), Opaque):
                stack[-1].state = state
        elif name == "BINPERSID":
            stack.append(self._persistent(self.pop()))
        elif name == "POP":
            stack.pop()
        elif name == "DUP":
            stack.append(self._top())
        elif name not in _NOTHING:
            self._step_opaque(name, argument)

    def _step_opaque(self, name: str, argument: Any) -> None:
        """Opcodes whose outcome only code could tell."""
        if name == "NEWOBJ_EX":
            _, _, made = self.pop(), self.pop(), self.pop()
        elif name == "POP_MARK":
            self._pop_to_mark()
            return
        elif name == "FROZENSET":
            self._pop_to_mark()
            made = "builtins frozenset"
        elif name == "OBJ":
            made = self._pop_to_mark()[0]
        elif name == "INST":
            self._pop_to_mark()
            made = argument
        else:
            made = _OPAQUE[name]
        self._stack.append(Opaque(made if isinstance(made, str) else _name(made)))

    def _persistent(self, identity: Any) -> Any:
        """("storage", type, key, location, numel), in the stream format with a sixth element for views; or a class."""
        _need(isinstance(identity, tuple) and len(identity) >= 2)
        if identity[0] == "module":  # a class with its source
            return identity[1]
        _need(len(identity) in (5, 6) and identity[0] == "storage")
        _, kind, key, _, numel, *view = identity
        _need(isinstance(kind, Global) and isinstance(key, str) and _is_count(numel))
        storage = Storage(kind.name, key, numel)
        if self._storages.setdefault(key, storage) != storage:
            raise UserError(f"storage {listing([key])} is described in two ways")
        return storage if view in ([], [None]) else Opaque("a view of a storage")


def _need(holds: bool) -> None:
    if not holds:
        raise ValueError


def _name(value: Any) -> str:
    return value.name if isinstance(value, Global | Opaque) else "something that cannot be called"


def _set_items(target: Any, items: list[Any]) -> None:
    _need(isinstance(target, dict | Opaque) and len(items) % 2 == 0)
    if isinstance(target, Opaque):
        if target.items is None:
            return
        target = target.items
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is not str and not (type(key) is int and abs(key) < MAX_NUMBER):  # others may collide on purpose
            key = OddKey()
        if key in target:
            raise UserError(f"{listing([key])} occurs twice")
        target[key] = value


def _call(function: Any, arguments: Any) -> Any:
    """The record of a call; an `Opaque` for all that are not known here."""
    name = _name(function)
    if isinstance(function, Global) and isinstance(arguments, tuple):
        if name == REBUILD_SUBCLASS and len(arguments) == 4 and isinstance(arguments[2], tuple):
            function, _, arguments, _ = arguments
            name = _name(function)
        if name in DICTS:
            return _dict(arguments)
        if name in REBUILD_PARAMETER and arguments and isinstance(arguments[0], Tensor):
            return arguments[0]
        if name in REBUILD_TENSOR and len(arguments) >= 4 and isinstance(arguments[0], Storage):
            return _tensor(name, arguments)
    return Opaque(name, {} if isinstance(arguments, tuple) and not arguments else None)


def _dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """A kind of dict from nothing, a dict, a list of pairs (as Python 2 has it) or, a defaultdict, from a function."""
    given = arguments[0] if arguments else None
    if isinstance(given, dict):
        return given
    result: dict[Any, Any] = {}
    if isinstance(given, list):
        _need(all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in given))
        _set_items(result, [x for pair in given for x in pair])
        given.clear()  # or a file might have it copied again and again
    return result


def _tensor(name: str, arguments: tuple[Any, ...]) -> Tensor:
    storage, offset, shape, strides = arguments[:4]
    _need(isinstance(shape, tuple) and isinstance(strides, tuple))
    _need(len(shape) == len(strides) and all(map(_is_count, (offset, *shape, *strides))))
    kind = STORAGE_TYPES[storage.type][0] if storage.type in STORAGE_TYPES else storage.type
    if name.endswith("_v3"):  # of a type that torch has no storage for
        _need(len(arguments) >= 7)
        kind = _name(arguments[6])
    return Tensor(kind, shape, storage, offset, strides)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_NUMBER
