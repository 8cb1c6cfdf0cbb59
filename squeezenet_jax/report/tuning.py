"""What --tune chose for each row and from what, as the runs' own run.json says it; which images chose. No jax.

A comparison says nothing about other images where its own chose the recipe: `chose_the_recipe` tells. Read next:
`experiment/tuning.py`, which makes the choice.
"""

from collections.abc import Mapping
from typing import Any

from squeezenet_jax.data import catalog
from squeezenet_jax.report.comparison import Comparison, Run


def chose_the_recipe(run: Run) -> bool:
    """Whether the images that the run is evaluated on chose a recipe: then its accuracy is of no test."""
    tuning = _tuning(run)
    judged_on, evaluated_on = tuning.get("judged_on"), run.settings.get("data.eval_split")
    if not judged_on or not evaluated_on or "dataset" not in run.started:
        return "trial_of" in tuning
    dataset = catalog.DatasetInfo.recorded(run.started["dataset"])
    chosen, own = (
        catalog.parse_split("data.eval_split", text, run.settings["data.name"], dataset)
        for text in (judged_on, evaluated_on)
    )
    return chosen.shared_with(own) > 0


def judged_on(run: Run) -> str:
    """The images that chose the recipe, where --tune did."""
    return str(_tuning(run).get("judged_on", ""))


def notes(comparison: Comparison) -> list[str]:
    """For the reader of the table: what was tried, then a sentence for each row."""
    found = _by_row(comparison)
    runs = [run for row in comparison.rows for run in row.runs if run.started and run.settings]
    if runs and not any(map(_tuning, runs)):
        return ["No row was tuned on its own (--tune does that); the runs do not say which images chose the recipe."]
    heads = dict.fromkeys(map(_what_was_done, found.values()))
    return [*heads, *(_row(name, tuning) for name, tuning in found.items())]


def cautions(comparison: Comparison) -> list[str]:
    """What to know before believing what --tune chose."""
    sentences = []
    runs = [run for row in comparison.rows for run in row.runs]
    if splits := dict.fromkeys(run.settings["data.eval_split"] for run in runs if chose_the_recipe(run)):
        sentences.append(
            f"These runs are evaluated on images that choose the recipe ({', '.join(splits)}): this is validation, no "
            "test, and the best row is better here than it will be elsewhere."
        )
    for name, tuning in _by_row(comparison).items():
        if tuning["top1"] is None:
            sentences.append(f"{name}: no recipe that was tried ended with an evaluation; it runs with the first one.")
            continue
        for key in tuning["at_the_end"]:
            value, tried = tuning["chosen"][key], tuning["grid"][key]
            end = "highest" if value == tried[-1] else "lowest"
            sentences.append(
                f"{name}: its {key}, {_text(value)}, is the {end} that was tried; there may be a better one beyond."
            )
    return sentences


def _tuning(run: Run) -> Mapping[str, Any]:
    found: Mapping[str, Any] = run.started.get("tuning") or {}
    return found


def _by_row(comparison: Comparison) -> dict[str, Mapping[str, Any]]:
    """What tuning.json says of each row that has begun to run with its choice."""
    return {row.name: found for row in comparison.rows for run in row.runs if "chosen" in (found := _tuning(run))}


def _what_was_done(tuning: Mapping[str, Any]) -> str:
    grid = "; ".join(f"{key} {', '.join(map(_text, values))}" for key, values in tuning["grid"].items())
    seeds = f"{len(tuning['seeds'])} seed{'s' if len(tuning['seeds']) > 1 else ''}"
    return (
        f"Each setting has its own recipe: of {len(tuning['points'])} that were tried for each ({grid}), with {seeds} "
        f"that the runs here do not use, the one with the highest mean top-1 on {tuning['judged_on']} after training "
        f"on {tuning['trained_on']}. The shared recipe has {_values(tuning['shared'], names=True)}."
    )


def _row(name: str, tuning: Mapping[str, Any]) -> str:
    tried = []
    for point in tuning["points"]:
        shared = " (shared)" if point["values"] == tuning["shared"] else ""
        ends = sorted({trial["status"] for trial in point["trials"]} - {"done"})
        score = "none" if point["top1"] is None else f"{100 * point['top1']:.2f} %"
        tried.append(f"{_values(point['values'])}{shared} {' '.join([score, *ends])}")
    return f"{name} has {_values(tuning['chosen'], names=True)}; tried: {', '.join(tried)}."


def _values(values: Mapping[str, Any], names: bool = False) -> str:
    return " ".join(f"{key}={_text(value)}" if names else _text(value) for key, value in values.items())


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
