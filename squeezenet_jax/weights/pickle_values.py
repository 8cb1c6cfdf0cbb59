"""The value that a pickle of tensors describes, found without unpickling: nothing in it is ever imported or called.

A restricted `pickle.Unpickler` would not be enough: with every global forbidden, opcodes alone can still fill the
memory (a memo index of 2**32, a byte array of any length) or hash for ever (nested tuples as a key). So this walks the
opcodes with `pickletools.genops`, which only decodes their arguments, keeps a stack of its own, and knows the opcodes
that torch.save emits; any other is refused. The calls that rebuild a tensor become records of their arguments.
"""

import collections
import dataclasses
import io
import pickletools
import warnings
from typing import Any

from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import listing

STORAGE_TYPES = {
    "torch FloatStorage": "F32",
    "torch DoubleStorage": "F64",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
}
REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
REBUILD_PARAMETER = "torch._utils _rebuild_parameter"
ORDERED_DICT = "collections OrderedDict"
GLOBALS = {*STORAGE_TYPES, REBUILD_TENSOR, REBUILD_PARAMETER, ORDERED_DICT}
MAX_OPCODES = 500_000
MAX_NUMBER = 1 << 40


@dataclasses.dataclass(frozen=True)
class Storage:
    kind: str  # a key of STORAGE_TYPES
    key: str
    numel: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str


class _Mark:
    pass


_PLAIN = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUT, _GET = {"BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"BINGET", "LONG_BINGET"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(stream: io.BytesIO, limit: int, storages: dict[str, Storage] | None = None) -> Any:
    """The value of the pickle at the stream's position, which moves behind it; `UserError` for anything unusual.

    Values are None, bool, int, float, str, list, tuple, dict with keys of str or int, `Storage` and `Tensor`. A pickle
    that goes on for more than `limit` bytes is refused. Every storage it mentions is put into `storages`.
    """
    machine = _Machine({} if storages is None else storages)
    start = stream.tell()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # about escapes in old text opcodes, refused right after
            for count, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
                if count > MAX_OPCODES or (position or 0) - start > limit:
                    raise UserError("the pickle is too long for a state dict")
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
    """Pickle's stack and memo, for the opcodes of a state dict."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self._storages = storages
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self._stack.pop()
        if isinstance(value, _Mark):
            raise IndexError
        return value

    def _pop_to_mark(self) -> list[Any]:
        values: list[Any] = []
        while not isinstance(top := self._stack.pop(), _Mark):
            values.append(top)
        return values[::-1]

    def step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in ("PROTO", "FRAME"):
            return
        if name in _PUT:
            if isinstance(stack[-1], _Mark):
                raise IndexError
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name in _GET:
            stack.append(self._memo[argument])
        elif name in _PLAIN:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_Mark())
        elif name in _TUPLES:
            stack.append(tuple(reversed([self.pop() for _ in range(_TUPLES[name])])))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop_to_mark() if name == "SETITEMS" else [self.pop(), self.pop()][::-1]
            _set_items(stack[-1], items)
        elif name in ("APPEND", "APPENDS"):
            values = self._pop_to_mark() if name == "APPENDS" else [self.pop()]
            _need(isinstance(stack[-1], list))
            stack[-1].extend(values)
        elif name == "GLOBAL":
            stack.append(_global(argument))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            stack.append(_global(f"{module} {attribute}" if isinstance(module, str) else ""))
        elif name == "REDUCE":
            arguments, function = self.pop(), self.pop()
            stack.append(_rebuild(function, arguments))
        elif name == "BINPERSID":
            storage = _storage(self.pop())
            if self._storages.setdefault(storage.key, storage) != storage:
                raise UserError(f"storage {listing([storage.key])} is described in two ways")
            stack.append(storage)
        elif name == "BUILD":  # a state dict's `_metadata`: versions of modules, of no use here
            state = self.pop()
            _need(isinstance(state, dict) and isinstance(stack[-1], dict))
        else:
            raise UserError(f"refused: the pickle uses the opcode {name}, which no state dict needs")


def _need(holds: bool) -> None:
    if not holds:
        raise ValueError


def _global(name: str) -> _Global:
    if name not in GLOBALS:
        raise UserError(f"refused: the pickle asks for {listing([name.replace(' ', '.')])}, which no state dict needs")
    return _Global(name)


def _set_items(target: Any, items: list[Any]) -> None:
    keys = items[::2]
    _need(isinstance(target, dict) and len(items) % 2 == 0 and all(type(key) in (str, int) for key in keys))
    for key, value in zip(keys, items[1::2], strict=True):
        if key in target:
            raise UserError(f"{listing([key])} occurs twice")
        target[key] = value


def _rebuild(function: Any, arguments: Any) -> Any:
    _need(isinstance(function, _Global) and isinstance(arguments, tuple))
    if function.name == ORDERED_DICT:
        _need(arguments == ())
        return collections.OrderedDict()
    if function.name == REBUILD_PARAMETER:
        _need(len(arguments) == 3 and isinstance(arguments[0], Tensor))
        return arguments[0]
    _need(function.name == REBUILD_TENSOR and len(arguments) in (6, 7))
    storage, offset, shape, strides = arguments[:4]
    _need(isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple))
    _need(len(shape) == len(strides) <= 8 and all(map(_is_count, (offset, *shape, *strides))) and 0 not in shape)
    return Tensor(storage, offset, shape, strides)


def _storage(identity: Any) -> Storage:
    """("storage", type, key, location, numel); the stream format has a sixth element for views, since 0.4 None."""
    _need(isinstance(identity, tuple) and len(identity) in (5, 6) and identity[0] == "storage")
    _, kind, key, _, numel, *view = identity
    if isinstance(kind, _Global) and kind.name not in STORAGE_TYPES:
        raise UserError(f"refused: {listing([kind.name])} is not a storage of floats")
    _need(isinstance(kind, _Global) and isinstance(key, str) and _is_count(numel) and view in ([], [None]))
    return Storage(kind.name, key, numel)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_NUMBER
