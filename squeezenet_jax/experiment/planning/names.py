"""How runs and settings are named, and what a person means who names one or types a value."""

import ast
import re
import urllib.parse
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from squeezenet_jax.system.errors import UserError

SEED = "seed"
ONE = "run"  # the name of a run, and of a setting, that has no swept values
MOST_NAME = 200  # bytes; a file system allows 255, and the names of scratch files are longer


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Short name -> key: "bypass" for model.bypass, or "optimizer.name" where "name" alone has two meanings."""
    keys = list(keys)
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return {key if last.count(name) > 1 else name: key for key, name in zip(keys, last, strict=True)}


def run_name(overrides: Mapping[str, Any], names: Mapping[str, str], without: Collection[str] = ()) -> str:
    parts = [f"{names.get(key, key)}={text_of(value)}" for key, value in overrides.items() if key not in without]
    return ",".join(parts) or ONE


def setting_name(overrides: Mapping[str, Any]) -> str:
    """The name of the setting that a run with these swept values belongs to."""
    return run_name(plain(overrides), {key: name for name, key in short_names(overrides).items()}, without=(SEED,))


def check_names(where: str, names: Sequence[str]) -> None:
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise UserError(f"{where}: its values do not give each run a name of its own; two are {twice}")
    longest = max(names, key=lambda name: len(name.encode()))
    if len(longest.encode()) > MOST_NAME:
        raise UserError(f"{where}: the name {longest[:60]}... has more than {MOST_NAME} bytes, too long for a folder")


def text_of(value: Any) -> str:
    """A value as it stands in a name, and so in that of a folder: no separator of names or paths in it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return "x".join(map(text_of, value))
    # Everything but /, the comma, = and % is allowed.
    return re.sub(r"[/,=%\x00-\x1f]", lambda match: urllib.parse.quote(match[0], safe=""), str(value))


def typed(text: str) -> Any:
    """What a person typed as a value: 1e-3, true, (1, 2), or else text."""
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text


def means(text: str, value: Any) -> bool:
    """Whether what a person typed for --only is this value: by its name, or by what it says (1e-3, true)."""
    if text == text_of(value) or text == str(value):
        return True
    said = typed(text)
    if isinstance(value, tuple) and isinstance(said, tuple | list):
        return tuple(said) == value
    return isinstance(said, bool) == isinstance(value, bool) and bool(said == value)


def split_at_commas(text: str) -> list[str]:
    """The parts between commas, but for those inside of brackets."""
    return [part.strip() for part in re.split(r",(?![^(\[]*[)\]])", text)]


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """NumPy's numbers as Python's, lists as tuples, paths as text."""

    def one(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(one(item) for item in value)
        if isinstance(value, Path):
            return str(value)
        return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value

    return {key: one(value) for key, value in values.items()}
