"""The one exception for wrong input, and the sentence it carries.

Every check of something that a person typed raises `UserError` with one line that names the field, the value, what
is allowed and the nearest valid name. `launch.py` and `python -m squeezenet_jax` print that line and exit with 2.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input; its text is one line, fit to be shown to the person who gave it."""


class TryAgain(Exception):
    """Nothing is wrong with the input, but the network, or another process, is in the way; its text is one line.

    The programs print it and exit with 75 (EX_TEMPFAIL): the same command continues later.
    """


def shown(value: object, most: int = 80) -> str:
    """A value for an error line: short and printable, whatever a file has put into it."""
    text = repr(value)[1:-1] if isinstance(value, str) else str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def unknown(field: str, value: object, allowed: Iterable[str]) -> UserError:
    """The error for a `value` of `field` that is not one of `allowed`, with the nearest allowed name."""
    names, text = list(allowed), shown(value)
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.4)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    if len(names) > 12:  # a list that nobody would read
        names = [*difflib.get_close_matches(text, names, n=5, cutoff=0.1), "..."]
    return UserError(f'{field}: unknown value "{text}"; allowed: {", ".join(names)}{hint}')


def check_choice(field: str, value: str, allowed: Iterable[str]) -> str:
    """Returns `value` if it is one of `allowed`; raises `UserError` otherwise."""
    names = list(allowed)
    if value not in names:
        raise unknown(field, value, names)
    return value
