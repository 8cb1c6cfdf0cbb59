"""The newest checkpoint of a run: a directory with `run.json` and `checkpoints/`.

The network's table follows from the settings in `run.json`, as does the preprocessing: what the run's own evaluation
does to an image.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from squeezenet_jax import settings
from squeezenet_jax.runs import checkpoint
from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import Preprocessing, Weights, parameter_shapes, unflatten
from squeezenet_jax.weights.formats.infer import Wishes, to_float32
from squeezenet_jax.weights.formats.metadata import parse_json

MAX_RUN_JSON = 1 << 26  # earlier versions wrote all class names again at each start
# In the provenance, where they are out of the ordinary: what became of the run, the steps of newer checkpoints that are
# unreadable, and what it computed in.
STATUS, UNREADABLE, DTYPE = "status", "unreadable steps", "dtype"


def read(path: Path, wishes: Wishes, provenance: Mapping[str, str]) -> Weights:
    wishes.refuse_bypass("a run")
    run = _read_run_json(path / "run.json")
    config = settings.from_config(run["settings"])
    steps = checkpoint.steps(path / "checkpoints")  # before one is read: a running run may write another one
    step, params = _newest_params(path / "checkpoints", config)
    tensors = {name: to_float32(x) for name, x in params.items()}
    origin = {name: str(run[name]) for name in ("experiment", "preset", "git") if isinstance(run.get(name), str)}
    origin |= _oddities(path, config, [x for x in steps if x > step])
    return Weights(
        config.model.architecture(),
        unflatten(tensors),
        config.data.num_classes,
        config.data.channels,
        preprocessing(config.data),
        labels=_class_names(run, config.data.num_classes),
        provenance={**provenance, **origin, "dataset": config.data.name, "step": str(step)},
    )


def _oddities(path: Path, config: settings.Settings, newer: Sequence[int]) -> dict[str, str]:
    found, status = {}, "unknown"
    with contextlib.suppress(UserError):  # a damaged file says nothing about the weights
        status = RunDirectory(path).status
    if status not in ("done", "stalled"):
        found[STATUS] = status
    if newer:
        found[UNREADABLE] = ", ".join(map(str, newer))
    if config.model.dtype != "float32":
        found[DTYPE] = config.model.dtype
    return found


def remark(provenance: Mapping[str, str]) -> str:
    """Why weights of a run are not those that it ended with, for whoever takes them for that; else ""."""
    reasons = []
    if STATUS in provenance:
        reasons.append(f"the run's status was {provenance[STATUS]}")
    if UNREADABLE in provenance:
        reasons.append(f"newer checkpoints were unreadable: {provenance[UNREADABLE]}")
    return f"the weights are of step {provenance.get('step', 'unknown')}; {'; '.join(reasons)}" if reasons else ""


def _class_names(run: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    dataset = run.get("dataset")
    names = dataset.get("class_names") if isinstance(dataset, dict) else None
    if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(name, str) for name in names):
        return ()  # runs need not have recorded them
    return tuple(names)


def preprocessing(data: settings.DataSettings) -> Preprocessing:
    """What `data/sources.py` and `augment.normalize` do to an image at evaluation."""
    mode: Literal["squash", "short_side"]
    orders: dict[int, Any] = {1: "L", 3: "RGB"}
    if data.channels not in orders:
        raise UserError(f"data.channels: {data.channels} is not allowed here; images have 1 or 3")
    size, order = data.image_size, orders[data.channels]
    resize, mode = (size, "squash") if data.crop == "whole" else (data.eval_resize, "short_side")
    return Preprocessing(
        "training",
        resize,
        mode,
        size,
        order,
        scale=1 / 255,
        mean=data.mean,
        std=data.std,
        exif_orientation=data.exif_orientation,
    )


def _read_run_json(path: Path) -> dict[str, Any]:
    if not path.is_file() or path.stat().st_size > MAX_RUN_JSON:
        raise UserError("not a run: there is no readable run.json in it")
    run = parse_json(path.read_bytes(), "run.json")
    if not isinstance(run, dict) or not isinstance(run.get("settings"), dict):
        raise UserError("run.json: there are no settings in it")
    return run


def _newest_params(path: Path, config: settings.Settings) -> tuple[int, dict[str, np.ndarray]]:
    """(step, parameters by path), checked against the network's shapes."""
    if not path.is_dir():
        raise UserError("the run has no checkpoints")
    try:
        newest = checkpoint.read_newest(path)
    except OSError as error:
        raise UserError(f"its checkpoints cannot be read ({type(error).__name__})") from None
    if newest is None:
        raise UserError(f"has no readable checkpoint ({len(checkpoint.steps(path))} unreadable)")
    step, arrays = newest
    # params/conv1/kernel; model_state/ or, of an average, ema/ and a flax collection's name before the path
    kept = "ema/[^/]+" if config.train.ema_decay else "params|model_state/[^/]+"
    paths = {name: re.fullmatch(f"(?:{kept})/(.+)", name) for name in arrays}
    params = {match[1]: arrays[name] for name, match in paths.items() if match}
    shapes = parameter_shapes(
        config.model.architecture(), channels=config.data.channels, num_classes=config.data.num_classes
    )
    if {name: x.shape for name, x in params.items()} != shapes:
        raise UserError("its newest checkpoint does not fit the settings in run.json")
    return step, {name: params[name] for name in shapes}  # in the network's order; the file has none
