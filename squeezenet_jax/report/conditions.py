"""How the runs of a comparison were run: on what, with which settings, and where they were not run alike. No jax.

Each condition is declared once, in `CONDITIONS`; the line above the table and the page's list derive from it. What is
not the same for all runs is shown with all of its values. Read next: `files.py` and `page.py`.
"""

import collections
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from squeezenet_jax import settings
from squeezenet_jax.report import tuning
from squeezenet_jax.report.comparison import Comparison, Run

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
    "recipe chosen on": tuning.judged_on,
    "set on the command line": _command_line,
}


def _has_weights(flat: Mapping[str, Any]) -> bool:
    return bool(flat.get("model.init_from")) and flat.get("model.start") != "scratch"


# What a seed decides, and in which runs.
RANDOM: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "the initialisation": lambda flat: not _has_weights(flat),
    "the initialisation of layers that the given weights lack": _has_weights,
    "the order of the images": lambda flat: True,
    "crops and flips": lambda flat: bool(
        flat.get("data.flip") or flat.get("data.crop_padding") or flat.get("data.crop", "whole") != "whole"
    ),
    "mixup": lambda flat: bool(flat.get("data.mixup_alpha")),
    "cutout": lambda flat: bool(flat.get("data.cutout")),
    "dropout": lambda flat: bool(flat.get("model.dropout")),
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
    """A sentence each for what the runs, or their starts, do not share: images, code revision, devices and packages.

    Before them what is to be known of how the recipe was chosen.
    """
    starts = _starts(comparison)
    packages = [package for package, values in _packages(starts).items() if len(values) > 1]
    what: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "code revision": _revision,
        "devices": _devices,
        "packages": lambda start: _versions(start, packages) if "versions" in start else "",
    }
    found = {"images that could not be evaluated": _left_out(comparison)}
    found |= {name: [(run, text(start)) for run, start in starts] for name, text in what.items()}
    sentences = tuning.cautions(comparison)
    for name, values in found.items():
        runs_by_value: dict[str, list[str]] = {}
        for run, value in values:
            if value:
                runs_by_value.setdefault(value, []).append(run)
        *few, (usual, _) = sorted(runs_by_value.items(), key=lambda item: len(item[1])) or [("", [])]
        if few:
            parts = [f"{value} ({_listed([*dict.fromkeys(runs)])})" for value, runs in few]
            sentences.append(f"The runs differ in {name}: {'; '.join(parts)}; the others {usual}.")
    return sentences


def varied(comparison: Comparison) -> str:
    """What differs between the runs of a row, as a sentence; "" where their settings are not known.

    All randomness of a run follows from its seed (`system/randomness.py`): what uses any is what varied.
    """
    runs = [run for row in comparison.rows if row.n > 1 for run in row.runs if run.result and run.settings]
    if not runs:
        return ""
    found = [text for text, applies in RANDOM.items() if any(applies(run.settings) for run in runs)]
    others = sorted({name for row in comparison.rows for name in _differing(row.runs)})
    fixed = not {"data.train_split", "data.eval_split"} & {*others}
    same = " Training and evaluation images are the same." if fixed else ""
    return f"Between the seeds of a row vary {_and([*found, *others])}.{same}"


def environment(comparison: Comparison) -> dict[str, list[str]]:
    """The code revisions, devices and package versions that any of the runs had."""
    starts = _starts(comparison)
    packages = _packages(starts)
    found = {
        "code revision": [_revision(start) for _, start in starts],
        "devices": [_devices(start) for _, start in starts],
        "versions": [", ".join(f"{package} {' or '.join(values)}" for package, values in packages.items())],
    }
    return {name: values for name, texts in found.items() if (values := [*dict.fromkeys(filter(None, texts))])}


def _left_out(comparison: Comparison) -> list[tuple[str, str]]:
    """(run, how many images of its evaluation split are not in its accuracy) of the runs that count."""
    return [
        (f"{run.setting},seed={run.seed}", f"{run.images['eval'] - run.result['count']:,.0f}")
        for row in comparison.rows
        for run in row.runs
        if run.result and run.images
    ]


def _starts(comparison: Comparison) -> list[tuple[str, Mapping[str, Any]]]:
    """(run, its run.json) of each time that a run was started or resumed."""
    return [
        (f"{run.setting},seed={run.seed}", start)
        for row in comparison.rows
        for run in row.runs
        for start in [*run.started.get("earlier_starts", ()), run.started]
    ]


def _packages(starts: list[tuple[str, Mapping[str, Any]]]) -> dict[str, list[str]]:
    """The versions of each package."""
    found: dict[str, dict[str, None]] = {}
    for _, start in starts:
        for package, version in start.get("versions", {}).items():
            found.setdefault(package, {})[version or "(not installed)"] = None
    return {package: list(versions) for package, versions in found.items()}


def _versions(start: Mapping[str, Any], packages: list[str]) -> str:
    return " and ".join(f"{package} {start['versions'].get(package) or '(not installed)'}" for package in packages)


def _revision(start: Mapping[str, Any]) -> str:
    commit, plus, changes = (start.get("git") or "unknown").partition("+")
    return commit[:10] + plus + changes if "git" in start else ""


def _devices(start: Mapping[str, Any]) -> str:
    kinds = collections.Counter(start.get("devices", ()))
    processes = f" in {start['processes']} processes" if start.get("processes", 1) > 1 else ""
    cores = f" with {start['cores']} cores" if start.get("cores") else ""  # of the host: a CPU computes with them
    return ", ".join(f"{count} × {kind}" for kind, count in kinds.items()) + cores + processes


def _differing(runs: Sequence[Run]) -> set[str]:
    """The settings, but for the seed, that the runs of a row do not share."""
    found = [run.settings for run in runs if run.result]
    names = {name for each in found for name in each} - {"seed", *settings.PLACES}
    return {name for name in names if any(each.get(name) != found[0].get(name) for each in found)}


def _and(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    return " and ".join([*names[:MOST_NAMES], *([f"{more} more"] if more > 0 else [])])


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)
