"""Settings of runs that train in seconds."""

from typing import Any

from experiments import base
from squeezenet_jax import settings
from squeezenet_jax.data import catalog
from squeezenet_jax.experiment.planning import flatten, unflatten
from squeezenet_jax.settings import Settings

SHRUNK = {  # a shipped experiment in seconds
    "model.width": 0.125,
    "data.image_size": 8,
    "data.train_split": "train[:96]",
    "data.eval_split": "test[:50]",
    "train.batch_size": 16,
    "train.eval_batch_size": 32,
    "train.epochs": 2.0,
    "optimizer.warmup_epochs": 1.0,
}
TINY = SHRUNK | {  # with several log lines and checkpoints
    "train.log_every_steps": 4,
    "train.checkpoint_every_steps": 5,
    "optimizer.warmup_epochs": 0.5,
}


def dotted(overrides: dict[str, Any]) -> dict[str, Any]:
    """Keywords as settings: `model__bypass="simple"` sets model.bypass."""
    return {name.replace("__", "."): value for name, value in overrides.items()}


def as_flags(config: dict[str, Any]) -> list[str]:
    return [f"--config.{name}={value}" for name, value in config.items()]


def make_settings(**overrides: Any) -> Settings:
    """Settings of a tiny run on digits."""
    config = flatten(base.get_config().to_dict()) | TINY | dotted(overrides)
    return settings.from_config(unflatten(catalog.resolve(config)))
