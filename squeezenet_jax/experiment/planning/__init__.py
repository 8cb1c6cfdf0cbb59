"""From an experiment file to the runs of its sweep. Read first: `plans.py`."""

from squeezenet_jax.experiment.planning.files import get_config, load_experiment
from squeezenet_jax.experiment.planning.names import (
    ONE,
    SEED,
    check_names,
    plain,
    run_name,
    setting_name,
    short_names,
    split_at_commas,
    typed,
)
from squeezenet_jax.experiment.planning.plans import (
    Plan,
    PlannedRun,
    changed,
    check_differences,
    common,
    flatten,
    plan,
    unflatten,
)

__all__ = [
    "ONE",
    "SEED",
    "Plan",
    "PlannedRun",
    "changed",
    "check_differences",
    "check_names",
    "common",
    "flatten",
    "get_config",
    "load_experiment",
    "plain",
    "plan",
    "run_name",
    "setting_name",
    "short_names",
    "split_at_commas",
    "typed",
    "unflatten",
]
