"""Which part of a checkpoint is the network: the state dict in what a training script has saved, without its wrappers.

Scripts keep the tensors under keys of their own ("model", "state_dict"), beside optimizers, arguments and a moving
average of the same tensors, and wrappers put prefixes before every name ("module.", "_orig_mod."). A state dict is
known by its first tensor, `FIRST_KEY`, whatever stands before that name. Only the one that is taken must be clean.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import listing
from squeezenet_jax.weights.formats import torchvision_layout
from squeezenet_jax.weights.formats.infer import FLOAT_TYPES, Described
from squeezenet_jax.weights.formats.pickle_values import Global, Opaque
from squeezenet_jax.weights.formats.torchvision_layout import FIRST_KEY

# In provenances, for people: the state dict that was taken where it has a name, and those that would fit as well.
TAKEN, OTHERS = "state dict", "other state dicts"
USUAL = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")  # the first ones go first
AVERAGED = {"ema", "swa", "averaged", "average", "shadow", "teacher", "momentum"}  # words; these are taken last
MODULE_PARTS = ("_parameters", "_buffers", "_modules")
MAX_CANDIDATES, MAX_DEPTH, MAX_MODULES_DEPTH, MAX_KEY = 20, 5, 12, 200


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mapping that has `FIRST_KEY`. Its names are without their prefix; `beside` is what has other prefixes."""

    path: tuple[str, ...]  # keys that lead to it
    prefix: str  # "" where it is the only one of its mapping
    tensors: Mapping[str, Any]
    beside: Mapping[Any, Any]

    @property
    def name(self) -> str:
        return ".".join((*self.path, self.prefix)).strip(".")

    def is_called(self, wish: str) -> bool:
        return wish in (self.name, ".".join(self.path), self.path[-1] if self.path else "", self.prefix.rstrip("."))

    def rank(self) -> tuple[bool, int]:
        words = {word for part in (*self.path, self.prefix) for word in re.split(r"[^a-z]+", part.lower())}
        usual = [USUAL.index(key) for key in self.path if key in USUAL]
        return bool(words & AVERAGED), min(usual, default=len(USUAL) if self.path else -1)


class Refused(UserError):
    """Something in a state dict that only code could make."""


def find(value: Any) -> list[Candidate]:
    """Every state dict in a file's value, the likeliest first."""
    found: list[Candidate] = []
    queue: collections.deque[tuple[tuple[str, ...], Any]] = collections.deque([((), value)])
    seen: set[int] = set()  # a value may contain itself
    while queue and len(found) < MAX_CANDIDATES:
        path, value = queue.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Opaque):
            module = _of_module(value)
            found += [] if module is None else _of_mapping(module, path)
            value = value.items
        elif isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            found += _of_mapping(value, path)
            if len(path) < MAX_DEPTH:
                queue += [
                    ((*path, str(key)[:MAX_KEY]), inner)
                    for key, inner in value.items()
                    if isinstance(inner, dict | list | tuple | Opaque) and isinstance(key, str | int)
                ]
    return sorted(found[:MAX_CANDIDATES], key=Candidate.rank)


def choose(candidates: list[Candidate], wish: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """(tensors under torchvision's names, provenance) of the first candidate that fits, or of the one that is wished.

    Raises `UserError` where none does, and where the one that is to be taken holds more than tensors and plain values.
    """
    if wish is not None:
        names = [candidate.name for candidate in candidates if candidate.name]
        candidates = [candidate for candidate in candidates if candidate.is_called(wish)]
        if not candidates:
            inside = f"the file has {listing(names)}" if names else "the file has only one, without a name"
            raise UserError(f'state_dict: unknown value "{wish}"; {inside}')
    problems: list[UserError] = []
    for number, candidate in enumerate(candidates):
        try:
            tensors = _parameters(candidate)
        except Refused:
            raise
        except UserError as error:
            problems.append(error)
            continue
        others = [other.name or "its top level" for other in candidates[number + 1 :] if _fits(other)]
        taken = {TAKEN: listing([candidate.name])} if candidate.name else {}
        return tensors, taken | ({OTHERS: listing(others)} if others else {})
    raise problems[0]


def _of_mapping(mapping: Mapping[Any, Any], path: tuple[str, ...]) -> list[Candidate]:
    """One for each prefix that `FIRST_KEY` has; each name belongs to the longest prefix that it begins with."""
    names = [name for name in mapping if type(name) is str and name.endswith(FIRST_KEY)]
    prefixes = [name.removesuffix(FIRST_KEY) for name in names if not isinstance(mapping[name], dict | list | tuple)]
    prefixes = [prefix for prefix in prefixes if (prefix == "" or prefix.endswith(".")) and len(prefix) <= MAX_KEY]
    prefixes = sorted(prefixes[:MAX_CANDIDATES], key=len, reverse=True)
    parts: dict[str, dict[str, Any]] = {prefix: {} for prefix in prefixes}
    beside: dict[Any, Any] = {}
    for name, value in mapping.items() if prefixes else ():
        owner = next((prefix for prefix in prefixes if type(name) is str and name.startswith(prefix)), None)
        if owner is None:
            beside[name] = value
        else:
            parts[owner][name.removeprefix(owner)] = value
    shown = {prefix: prefix if len(prefixes) > 1 else "" for prefix in prefixes}
    return [Candidate(path, shown[prefix], tensors, beside) for prefix, tensors in parts.items()][::-1]


def _of_module(value: Opaque) -> dict[str, Any] | None:
    """The tensors of a module that was saved as a whole, as its `state_dict()` would name them; None if it has none."""
    tensors: dict[str, Any] = {}
    stack, seen = [("", value.state, 0)], set()
    while stack:
        prefix, state, depth = stack.pop()
        if not isinstance(state, dict) or id(state) in seen or depth > MAX_MODULES_DEPTH:
            continue
        seen.add(id(state))
        parts = [state[part] for part in MODULE_PARTS if isinstance(state.get(part), dict)]
        for name, inner in [item for part in parts or [state] for item in part.items()]:  # TorchScript has no parts
            if type(name) is not str or len(name) > MAX_KEY:
                continue
            if isinstance(inner, Opaque) and isinstance(inner.state, dict):
                stack.append((f"{prefix}{name}.", inner.state, depth + 1))
            elif isinstance(inner, Described) or (parts and inner is not None):
                tensors[prefix + name] = inner
    return tensors or None


def _parameters(candidate: Candidate) -> dict[str, Described]:
    """The candidate's parameters without counters and other scalars; `UserError` where they are of no SqueezeNet."""
    for name, value in (*candidate.tensors.items(), *candidate.beside.items()):
        if isinstance(value, Opaque | Global):
            asked = listing([value.name.replace(" ", ".")])
            raise Refused(f"refused: {listing([name])}: the pickle asks for {asked}, which no state dict needs")
        if type(name) is not str or not (value is None or isinstance(value, Described | bool | int | float | str)):
            raise UserError(f"not a state dict: {listing([name])} is neither a tensor nor a number")
    tensors = {name: x for name, x in candidate.tensors.items() if isinstance(x, Described) and _is_parameter(name, x)}
    for name, x in tensors.items():
        if x.kind not in FLOAT_TYPES:
            allowed = ", ".join(FLOAT_TYPES)
            kind = listing([x.kind.replace(" ", ".")])
            raise UserError(f"refused: {listing([name])}: type {kind} is not allowed; it must be one of {allowed}")
        if 0 in x.shape or len(x.shape) > 4:
            raise UserError(f"{listing([name])}: shape {listing(x.shape)} is not a kernel's or a bias's")
    torchvision_layout.names_of({name: x.shape for name, x in tensors.items()})
    return tensors


def _is_parameter(name: str, x: Described) -> bool:
    """Not so are the counters of BatchNorm and of tools that count MACs: integers, or a single number."""
    if name.rpartition(".")[2] in ("weight", "bias"):
        return True
    return x.kind in FLOAT_TYPES and x.shape not in ((), (1,))


def _fits(candidate: Candidate) -> bool:
    try:
        return bool(_parameters(candidate))
    except UserError:
        return False
