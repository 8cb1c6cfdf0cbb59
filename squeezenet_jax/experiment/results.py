"""What a run's directory says about how it ended: its status, its final evaluation, its speed. No jax.

Read next: `report/comparison.py`, which compares many of these.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from squeezenet_jax import report
from squeezenet_jax.data import catalog
from squeezenet_jax.report.comparison import COUNTED
from squeezenet_jax.runs import predictions
from squeezenet_jax.runs.directory import COMPRESSED, RunDirectory, whole_steps
from squeezenet_jax.runs.predictions import Predictions
from squeezenet_jax.settings import Settings
from squeezenet_jax.system import nested
from squeezenet_jax.system.errors import UserError

Record = Mapping[str, Any]  # a line of metrics.jsonl
MEDIANS, MEMORY = ("images_per_second", "step_seconds", "step_seconds_p90"), "device_memory_bytes"


def read_run(
    directory: RunDirectory, setting: str, overrides: Mapping[str, Any], settings: Settings, cost: tuple[int, int]
) -> report.Run:
    """One run of a comparison. `overrides` are its swept values, `cost` its (parameters, MACs)."""
    status, metrics = directory.status, directory.read_metrics()
    if status == "running" and not directory.is_held():
        status = "killed"
    train, evaluations = ([record for record in metrics if record["split"] == name] for name in ("train", "eval"))
    final = final_evaluation(evaluations, settings.train.epochs) if status in COUNTED else None
    speed = speeds(train, settings.train.log_every_steps)
    params, macs = cost
    compressed = directory.path / COMPRESSED
    started = directory.read_description()
    return report.Run(
        setting=setting,
        overrides={key: value for key, value in overrides.items() if key != "seed"},
        seed=settings.seed,
        status=status,
        params=params,
        macs=macs,
        final=None
        if final is None
        else {
            **final,
            **speed,
            **({"bytes": compressed.stat().st_size} if compressed.is_file() else {}),
        },
        train_curve=train,
        eval_curve=evaluations,
        settings=nested.flatten(dataclasses.asdict(settings), "."),
        started=started,
        images=_images(started, settings),
        majority=((started.get("labels") or {}).get("eval") or {}).get("majority"),
        predictions=None if final is None else _predictions(directory, final),
    )


def final_evaluation(evaluations: Sequence[Record], epochs: float) -> Record | None:
    """The one that was made after the last step of `epochs` epochs; None where there is none.

    A finished run's file may have been deleted, cut or replaced by an older copy. An evaluation says its step and its
    epoch, so it says how many steps an epoch has, and the last step is the whole number nearest to `epochs` of them.
    """
    for record in reversed(evaluations):
        steps_per_epoch = record["step"] / record["epoch"]
        if record["step"] == whole_steps(epochs, steps_per_epoch):
            return record
    return None


def _predictions(directory: RunDirectory, final: Record) -> Predictions | None:
    """Those of the final evaluation; None where the file is missing, damaged or another evaluation's.

    The comparison goes on without, and says so.
    """
    try:
        found = predictions.load(directory.path)
    except UserError:
        return None
    same = found is not None and len(found.index) == final["count"] and found.top1.mean() == final["top1"]
    return found if same else None


def speeds(windows: Sequence[Record], log_every_steps: int) -> dict[str, float]:
    """The medians of what log windows say of speed, and the most memory that a device had in use; what none says is
    left out.

    Of the windows that an evaluation, a checkpoint or a stop did not cut short; of all if each was.
    """
    before = [0, *(record["step"] for record in windows)]
    whole = [
        record for start, record in zip(before, windows, strict=False) if record["step"] - start == log_every_steps
    ]
    said = {name: [x for each in whole or windows if (x := each.get(name)) is not None] for name in (*MEDIANS, MEMORY)}
    return {name: max(xs) if name == MEMORY else statistics.median(xs) for name, xs in said.items() if xs}


def _images(started: Mapping[str, Any], settings: Settings) -> dict[str, int]:
    """How many images the splits "train" and "eval" had when the run was started; nothing of a run that was not."""
    if "dataset" not in started:
        return {}
    recorded = started["dataset"]
    dataset = catalog.DatasetInfo.recorded(recorded)
    found = {}
    for which in ("train", "eval"):
        field = f"{which}_split"
        split = catalog.parse_split(f"data.{field}", getattr(settings.data, field), settings.data.name, dataset)
        found[which] = split.stop - split.start
    return found
