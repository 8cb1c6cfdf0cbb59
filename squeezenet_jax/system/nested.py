"""Nested mappings as flat ones and back: settings by dotted paths, parameters by paths with slashes. Stdlib only."""

from collections.abc import Mapping
from typing import Any


def flatten(nested: Mapping[str, Any], separator: str, prefix: str = "") -> dict[str, Any]:
    """{"fire2": {"bypass": x}} -> {"fire2/bypass": x}."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        inner = isinstance(value, Mapping)
        flat |= flatten(value, separator, f"{prefix}{name}{separator}") if inner else {prefix + name: value}
    return flat


def unflatten(flat: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *groups, name = path.split(separator)
        node = nested
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = value
    return nested
