"""How the runs of a comparison were run: on what, with which settings, and where they were not run alike. No jax.

Each condition is declared once, in `CONDITIONS`; the line above the table and the page's list derive from it. What is
not the same for all runs is shown with all of its values. Read next: `files.py` and `page.py`.
"""

import collections
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from squeezenet_jax.report.comparison import Comparison, Run

PLACE = ("code revision", "devices")  # what a start says of where it was, beside the packages' versions
MOST_VALUES, MOST_NAMES = 4, 3  # so many are listed of what is swept, and of the runs that share something


def _setting(name: str, unit: str = "") -> Callable[[Run], str]:
    return lambda run: _text(run.settings[name]) + unit if name in run.settings else ""


def _split(which: str) -> Callable[[Run], str]:
    """The images of a split and its name: "96 (train[:96])"."""
    return lambda run: f"{run.images[which]:,} ({run.settings[f'data.{which}_split']})" if run.images else ""


def _learning_rate(run: Run) -> str:
    parts = [_text(run.settings.get(f"optimizer.{field}", "")) for field in ("peak_lr", "name", "schedule")]
    return f"{parts[0]} ({parts[1]}, {parts[2]})" if all(parts) else ""


def _command_line(run: Run) -> str:
    """What `--config.FIELD` set, with the values that it had in the end."""
    found = (re.match(r"--?(?:no)?config\.([\w.]+)", argument) for argument in run.started.get("command", ()))
    fields = dict.fromkeys(match[1] for match in found if match)
    return " ".join(f"{field}={_text(run.settings[field])}" for field in fields if field in run.settings)


CONDITIONS: dict[str, Callable[[Run], str]] = {
    "training images": _split("train"),
    "evaluation images": _split("eval"),
    "majority class": lambda run: "" if run.majority is None else f"{100 * run.majority:.2f} %",
    "image size": _setting("data.image_size", " px"),
    "batch size": _setting("train.batch_size"),
    "learning rate": _learning_rate,
    "epochs": _setting("train.epochs"),
    "set on the command line": _command_line,
}


def conditions(comparison: Comparison) -> dict[str, list[str]]:
    """The values that each condition has in any of the runs; without those of which nothing is known."""
    runs = [run for row in comparison.rows for run in row.runs]
    found = {name: [*dict.fromkeys(filter(None, map(text, runs)))] for name, text in CONDITIONS.items()}
    return {name: values for name, values in found.items() if values}


def summary(comparison: Comparison) -> str:
    """The conditions in one line; "" where none is known."""
    parts = []
    for name, values in conditions(comparison).items():
        many = len(values) > MOST_VALUES
        shown = f"{values[0]} to {values[-1]} ({len(values)} values)" if many else " or ".join(values)
        parts.append(f"{name}: {shown}")
    return "; ".join(parts)


def differences(comparison: Comparison) -> list[str]:
    """A sentence each for the code revision, the devices and every package that the runs' starts do not share."""
    return [
        f"The runs differ in {what}: {', '.join(f'{value} ({_listed(runs)})' for value, runs in values.items())}."
        for what, values in _environments(comparison).items()
        if len(values) > 1
    ]


def environment(comparison: Comparison) -> dict[str, list[str]]:
    """The code revisions, package versions and devices that any of the runs had."""
    found = _environments(comparison)
    versions = ", ".join(f"{what} {' or '.join(values)}" for what, values in found.items() if what not in PLACE)
    shown = {what: list(found[what]) for what in PLACE if what in found}
    return {**shown, "versions": [versions]} if versions else shown


def _environments(comparison: Comparison) -> dict[str, dict[str, list[str]]]:
    """For the code revision, the devices and every package: the values, and the names of the runs that had each."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in (run for row in comparison.rows for run in row.runs):
        for start in [*run.started.get("earlier_starts", ()), run.started]:
            for what, value in _environment(start):
                names = found.setdefault(what, {}).setdefault(value, [])
                if (name := f"{run.setting},seed={run.seed}") not in names:
                    names.append(name)
    return found


def _environment(start: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what, value) of one start of a run, from its run.json; nothing of what an older file does not say."""
    if "git" in start:
        commit, plus, changes = (start["git"] or "unknown").partition("+")
        yield "code revision", commit[:10] + plus + changes
    if "devices" in start:
        kinds = collections.Counter(start["devices"])
        processes = f" in {start['processes']} processes" if start.get("processes", 1) > 1 else ""
        yield "devices", ", ".join(f"{count} × {kind}" for kind, count in kinds.items()) + processes
    for package, version in start.get("versions", {}).items():
        yield package, version or "not installed"


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    return "; ".join(names[:MOST_NAMES]) + (f"; {more} more" if more > 0 else "")


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)
