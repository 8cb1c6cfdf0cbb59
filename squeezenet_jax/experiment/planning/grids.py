"""The grid of --tune: which recipes are tried. No jax. Read next: `tuning.py`."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from squeezenet_jax import settings
from squeezenet_jax.experiment.planning.names import SEED, plain, split_at_commas, typed
from squeezenet_jax.experiment.planning.plans import Plan, changed, flatten
from squeezenet_jax.system.errors import UserError, unknown

RATE = "optimizer.peak_lr"
STEPS = (0.5, 1.0, 2.0, 4.0)  # times the shared rate: the grid where nobody names one
# What says which images there are and which of them count is no recipe.
NOT_TUNED = {SEED, *settings.PLACES, *(f"data.{name}" for name in ("name", "train_split", "eval_split", "num_classes"))}


def grid(whole: Plan, experiment: ModuleType, asked: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """The values to try by setting's name, numbers from low to high: what the command line asks for
    ("optimizer.peak_lr=0.001,0.002"), else the experiment's `TUNE = {"optimizer.peak_lr": (0.001, 0.002)}`, else four
    learning rates. Raises `UserError` where a setting can't be tuned, or nothing is there to choose from.
    """
    where = "--grid" if asked else f"TUNE of {experiment.__name__}"
    named = _typed(asked) if asked else getattr(experiment, "TUNE", {})
    if not isinstance(named, Mapping):
        raise UserError(f"{where}: is no mapping of settings to values, such as {{'{RATE}': (0.001, 0.002)}}")
    if not named and RATE not in whole.config:
        raise UserError(f"--tune: {experiment.__name__} sweeps {RATE}, which it would tune; name another with --grid")
    named = named or {RATE: tuple(step * whole.config[RATE] for step in STEPS)}
    first, checked = whole.runs[0], {}
    for key, values in plain(named).items():
        if key in first.overrides:
            raise UserError(f"{where}: {key} can't be tuned, {experiment.__name__} sweeps it")
        if key not in whole.config or key in NOT_TUNED:
            raise unknown(where, key, [name for name in whole.config if name not in NOT_TUNED])
        values = values if isinstance(values, tuple) else (values,)
        tried = (changed(first.settings, {key: value}) for value in values)  # each with its type, and checked
        found = [*dict.fromkeys(flatten(dataclasses.asdict(one))[key] for one in tried)]
        if len(found) < 2:
            raise UserError(f"{where}: {key} has {len(found)} value; at least 2 different ones are needed")
        checked[key] = tuple(sorted(found)) if _are_numbers(found) else tuple(found)
    return checked


def ends(values: Sequence[Any]) -> tuple[Any, ...]:
    """The lowest and the highest of a setting's values; words have none."""
    return (values[0], values[-1]) if _are_numbers(values) else ()


def _typed(asked: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """["optimizer.peak_lr=1e-3,2e-3"] -> {"optimizer.peak_lr": (0.001, 0.002)}."""
    found: dict[str, tuple[Any, ...]] = {}
    for text in asked:
        key, equals, values = text.removeprefix("config.").partition("=")
        if not equals or key in found:
            what = "given twice" if key in found else "without values"
            raise UserError(f"--grid: {key} is {what}; example: --grid {RATE}=0.001,0.002,0.004")
        found[key] = tuple(typed(value) for value in split_at_commas(values))
    return found


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
