"""Which class of a network each class of some data is: by name wherever both have names. Letters: K classes.

The one rule, for `evaluate`, `model.init_from` and, as far as it concerns a list of names, `--labels`:

| names                                            | the classes go                                              |
|--------------------------------------------------|-------------------------------------------------------------|
| the data's and the network's are the same        | by name, in whatever order                                  |
| the data's are the numbers 0 to K-1              | by number (as numbers: 2 comes before 10)                   |
| the network has none, as published files do      | by position, the data's names sorted; a note says so.       |
|                                                  | `UserError` where they sort in two ways: x10, x2 or x2, x10 |
|                                                  | or are all called as splits are: train, test                |
| ImageNet's wnids, and its names in a label file  | by position: ImageNet's classes are in the order of wnids   |
| otherwise                                        | `UserError`, unless by position is asked for                |
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from squeezenet_jax.data import archives, layouts
from squeezenet_jax.system.errors import UserError

SHOWN = 3  # names of each list in an error


class Matched(NamedTuple):
    """`numbers`: of each class of the data, the network's class. `note`: what the user had better know, or ""."""

    numbers: tuple[int, ...]
    how: Literal["name", "number", "position"]
    note: str = ""


def match(network: Sequence[str], num_classes: int, data: Sequence[str], *, by_position: bool = False) -> Matched:
    """The rule above for the K names of a network, or none, and those of the data, in the data's order.

    Raises:
      UserError: the classes are not the same, with the first differences.
    """
    in_order = tuple(range(num_classes))
    if by_position:
        if len(data) != num_classes:
            raise UserError(f"has {_count(data)}; the network has {num_classes} classes")
        return Matched(in_order, "position")
    here, there = [_key(name) for name in data], [_key(name) for name in network]
    if network and set(here) == set(there) and len(set(here)) == len(here) == num_classes:
        number_of = {name: number for number, name in enumerate(there)}
        return Matched(tuple(number_of[name] for name in here), "name")
    if all(re.fullmatch("[0-9]+", name) for name in here):
        numbers = tuple(map(int, here))
        if sorted(numbers) == list(in_order):
            return Matched(numbers, "number")
    if len(data) == num_classes:
        if not network:
            if layouts.SPLITS.keys() >= set(here):
                raise UserError(
                    f"{' and '.join(data)} seem to be splits, not classes, and the weights have no class names; "
                    "--classes-by-position takes them as classes"
                )
            if between := _sorted_in_two_ways(here):
                raise UserError(
                    f"has classes that sort in two ways, as text or by number ({archives.printable(between[0])} before "
                    f"{archives.printable(between[1])} or behind it), and the weights have no class names; "
                    "--classes-by-position takes them as text"
                )
            return Matched(in_order, "position", "the weights have no class names: classes go by position")
        if _are_wnids(here) and _are_imagenets(there):
            return Matched(in_order, "position", "wnids stand for ImageNet's class names in their order")
    raise UserError(_difference(network, num_classes, data))


def check_labels(network: Sequence[str], labels: Sequence[str]) -> None:
    """Raises `UserError` where a list of names, in class order, has a name of the network's at another place.

    Other names, a translation say, are no contradiction; a name that stands twice says nothing.
    """
    here, there = [_key(name) for name in labels], [_key(name) for name in network]
    count_here, count_there = Counter(here), Counter(there)
    number_of = {name: number for number, name in enumerate(there)}
    for number, name in enumerate(here):
        if count_here[name] == count_there[name] == 1 and number_of[name] != number:
            raise UserError(
                f'"{archives.printable(labels[number])}" is class {number} there, and class {number_of[name]} by the '
                "weights' own names; leave --labels out, or insist with --classes-by-position"
            )


def _key(name: str) -> str:
    """Accents are written as one character by some systems and as two by others."""
    return unicodedata.normalize("NFC", name).strip()


def _sorted_in_two_ways(names: Sequence[str]) -> Sequence[str]:
    """The first two neighbours of sorted names that change places where numbers in them count as numbers, if any."""
    if list(names) != sorted(names):  # a dataset's own order
        return ()
    keys = [[int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)] for name in names]
    return next((names[i : i + 2] for i in range(len(names) - 1) if keys[i] > keys[i + 1]), ())


def _count(data: Sequence[str]) -> str:
    return f"{len(data)} class folder{'s' if len(data) != 1 else ''}"


def _are_wnids(names: Sequence[str]) -> bool:
    return len(names) == 1000 and list(names) == sorted(names) and all(re.fullmatch(r"n\d{8}", name) for name in names)


def _are_imagenets(names: Sequence[str]) -> bool:
    return names[0].lower().startswith("tench") and names[1].lower().startswith("goldfish")


def _difference(network: Sequence[str], num_classes: int, data: Sequence[str]) -> str:
    counts = f"has {_count(data)}; the network has {num_classes} classes"
    if not network:
        return counts
    here, there = {_key(name): name for name in data}, {_key(name): name for name in network}
    only_here = [name for key, name in here.items() if key not in there]
    only_there = [name for key, name in there.items() if key not in here]
    names = f"only the data have: {_listing(only_here)}; only the weights: {_listing(only_there)}"
    if len(there) < len(network):
        names += f"; the weights have {len(network) - len(there)} name(s) twice"
    if len(data) != num_classes:
        return f"{counts}; {names}"
    return f"has other classes than the weights: {names}; --classes-by-position takes them in sorted order"


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(archives.printable(name) for name in names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown or "none"
