"""Fields that are declared once, on one line, and the strict reading of nested plain values. Standard library only.

`setting` declares a field of a frozen dataclass: default, meaning, allowed values or range. Checks, defaults, help and
the settings page follow from it. `convert` makes any frozen dataclass of what a config or a file holds; nothing in a
file is trusted. A field with a default may be missing: files live longer than code.
"""

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from squeezenet_jax.system.errors import UserError, shown, unknown

T = TypeVar("T")
RULE = "rule"  # key of a field's metadata
HUGE = 1e300  # beyond it products overflow


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a field means and allows. Of a tuple, every element must keep to it."""

    meaning: str
    choices: tuple[str, ...]
    low: float | None
    above: float | None
    high: float | None
    below: float | None
    decides: bool

    @property
    def allowed(self) -> str:
        """For people: "at least 0 and below 1"; empty where everything of the field's type is allowed."""
        if self.choices:
            return ", ".join(self.choices)
        if self.low is not None and self.high is not None:
            return f"from {self.low:g} to {self.high:g}"
        bounds = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        return " and ".join(f"{words} {bound}" for words, bound in bounds.items() if bound is not None)

    def check(self, field: str, value: Any) -> None:
        for item in value if isinstance(value, tuple) else (value,):
            if self.choices and item not in self.choices:
                raise unknown(field, item, self.choices)
            within = (
                (self.low is None or item >= self.low)
                and (self.above is None or item > self.above)
                and (self.high is None or item <= self.high)
                and (self.below is None or item < self.below)
            )
            require(field, value, within, self.allowed)


def setting(
    default: T,
    meaning: str,
    *,
    choices: Iterable[str] = (),
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    decides: bool = True,
) -> T:
    """A field of a dataclass. `decides`: whether it has any influence on a result."""
    rule = Rule(meaning, tuple(choices), low, above, high, below, decides)
    return dataclasses.field(default=default, metadata={RULE: rule})


def check(group: Any, name: str) -> None:
    """For `__post_init__`: raises `UserError` where a field of the group `name` is not what its rule allows."""
    for field in dataclasses.fields(group):
        if RULE in field.metadata:
            path = f"{name}.{field.name}" if name else field.name
            field.metadata[RULE].check(path, getattr(group, field.name))


def require(field: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise UserError(f"{field}: {shown(value)} is not allowed; it must be {allowed}")


class Row(NamedTuple):
    """A declared field, for whoever lists them."""

    name: str  # "model.width"
    type: str
    default: Any
    rule: Rule


def rows(kind: type, prefix: str = "") -> Iterator[Row]:
    """Every declared field of a dataclass and of the groups in it."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            yield from rows(typing.cast(type, hint), name + ".")
        else:
            yield Row(name, _type_name(hint), field.default, field.metadata[RULE])


def convert(kind: type[T], value: object, what: str, prefix: str = "") -> T:
    """A frozen dataclass of nested plain values, such as JSON has; lists are taken for tuples, ints for floats.

    `what` is what is read ("config", "metadata"). Raises `UserError` for fields that are unknown, of another type, or
    missing without having a default.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{prefix.rstrip('.') or what}: {shown(value)} is not a group of fields")
    hints = typing.get_type_hints(kind)
    for name in value:
        if name not in hints:
            raise unknown(what, f"{prefix}{name}", [prefix + known for known in hints])
    missing = [prefix + field.name for field in _required(kind) if field.name not in value]
    if missing:
        raise UserError(f"{what}: {', '.join(missing)} missing")
    return kind(**{name: _convert(hints[name], item, what, prefix + name) for name, item in value.items()})


def _convert(hint: Any, value: Any, what: str, field: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return convert(typing.cast(type, hint), value, what, field + ".")
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise unknown(field, value, arguments)
        return value
    if origin is tuple and isinstance(value, list | tuple):  # tuple[X, ...]
        return tuple(_convert(arguments[0], item, what, field) for item in value)
    if origin is dict and isinstance(value, dict):  # JSON's keys are strings
        return {key: _convert(arguments[1], item, what, field) for key, item in value.items()}
    if hint is float and type(value) in (int, float):
        require(field, value, abs(value) < HUGE, f"finite and below {HUGE:g}")
        return float(value)
    if type(value) is not hint:
        raise UserError(f"{field}: {shown(repr(value))} is not allowed; it must be {_described(hint)}")
    return value


def _required(kind: type) -> list[dataclasses.Field[Any]]:
    nothing = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    return [field for field in fields if field.default is nothing and field.default_factory is nothing]


def _described(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    return f"a {origin.__name__} of {_type_name(arguments[-2])}" if origin is tuple else f"of type {_type_name(hint)}"


def _type_name(hint: Any) -> str:
    return str(hint) if typing.get_origin(hint) else hint.__name__
