"""A folder that a model hub's client uploads as it is, and that `load` reads by its path or its name there.

model.safetensors  the weights, with everything that it takes to run them in the metadata
config.json        the same description for other programs, class names as `id2label`, the settings of the run
README.md          the model card: `model_card.py`

Standard library and NumPy but for reading a run, so no package of the hub is needed. Read next: `model_card.py`.
"""

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from squeezenet_jax import settings, weights
from squeezenet_jax.data import catalog
from squeezenet_jax.export import model_card
from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.system import atomic, storage
from squeezenet_jax.system.errors import TryAgain, UserError
from squeezenet_jax.weights.bundle import Weights, flatten
from squeezenet_jax.weights.formats import metadata, run_directory, safetensors_file

FILE = "model.safetensors"
OF_SEEDS = ("run.json", "metrics.jsonl", "status.json")  # what the card needs of the runs beside its own


def export_hub(path: str | os.PathLike[str], source: Weights, run: str | os.PathLike[str] | None = None) -> Path:
    """Writes the folder `path`, which must be new or empty, reads it back, and only then gives it its name.

    Args:
      source: the weights, of the run's newest step where there is a run.
      run: the directory of the run behind them, from which the card has data, settings and accuracy.

    Example: `export_hub("bypass-digits", load(run), run)`. Raises `UserError` where the folder cannot be written.
    """
    out = Path(os.path.realpath(storage.local_only(path, "OUT", "with --format hub it must be a local folder")))
    check_out(out)
    trained = None if run is None else read_run(storage.expand(run, "run"), source)
    scratch = out.with_name(f".{out.name}.{platform.node()}.{os.getpid()}")
    try:
        scratch.mkdir()
        try:
            atomic.write(scratch / FILE, safetensors_file.write(source, "squeezenet_jax"))
            config = json.dumps(_config(source, trained), indent=2, allow_nan=False)
            atomic.write(scratch / "config.json", f"{config}\n".encode())
            atomic.write(scratch / "README.md", model_card.text(source, trained).encode())
            _verify(source, weights.load(scratch))
            os.rename(scratch, out)  # in place of an empty folder too
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise UserError(f"OUT {out}: cannot be written ({error.strerror or error})") from None
    return out


def check_out(out: Path) -> None:
    """Refuses what can be refused before anything is read. A card is edited by hand, so none is overwritten."""
    if not out.parent.is_dir():
        raise UserError(f"OUT {out}: there is no folder {out.parent}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"OUT {out}: is there already; with --format hub it must be a new or an empty folder")


def read_run(path: Path, source: Weights) -> model_card.Trained:
    """What the run says of the weights of its newest checkpoint, which `source` was read from."""
    with contextlib.suppress(UserError, TryAgain):  # of a bucket: the other seeds, as far as they can be had
        storage.fetch(path.absolute().parent, lambda key: key.rpartition("/")[2] in OF_SEEDS, exact=False)
    directory = RunDirectory(path)
    started = directory.read_description()
    run = settings.from_config(started["settings"])
    if not source.provenance.get("step", "").isdecimal():
        raise UserError(f"run: {path} is not where these weights were read from")
    step = int(source.provenance["step"])
    return model_card.Trained(
        settings=run,
        started=started,
        status=directory.status,
        step=step,
        evaluation=_evaluation(directory, step),
        images=_images(started, run),
        is_last=directory.status in model_card.ENDED and run_directory.UNREADABLE not in source.provenance,
        **_seeds(directory, started, step),
    )


def _evaluation(directory: RunDirectory, step: int) -> Mapping[str, Any] | None:
    """The newest one of this step."""
    records = [x for x in directory.read_metrics() if x["split"] == "eval" and x["step"] == step]
    return records[-1] if records else None


def _images(started: Mapping[str, Any], run: settings.Settings) -> int | None:
    if "dataset" not in started:  # a run of an earlier version
        return None
    recorded = started["dataset"]
    dataset = catalog.DatasetInfo.recorded(recorded)
    split = catalog.parse_split("data.train_split", run.data.train_split, run.data.name, dataset)
    return split.stop - split.start


def _seeds(directory: RunDirectory, started: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Of the runs beside this one with the same settings and inputs: top-1 at the same step by seed of those that
    ended, and the seeds of others that diverged."""

    def same(description: Mapping[str, Any]) -> Any:
        deciding = model_card.deciding(settings.from_config(description["settings"]))
        return {**deciding, "seed": None}, description.get("inputs")

    top1: dict[int, float] = {}
    diverged: list[int] = []
    for path in sorted(directory.path.absolute().parent.glob("*/run.json")):
        other = RunDirectory(path.parent)
        try:
            description = other.read_description()
            if same(description) != same(started):
                continue
            evaluation, seed = _evaluation(other, step), int(description["settings"]["seed"])
            if other.status == "diverged" and other.path != directory.path.absolute():
                diverged.append(seed)
            elif evaluation and other.status in model_card.ENDED:
                top1[seed] = float(evaluation["top1"])
        except (UserError, KeyError):  # damaged, or of another program
            continue
    return {"top1_by_seed": top1, "diverged_seeds": tuple(diverged)}


def _config(source: Weights, trained: model_card.Trained | None) -> dict[str, Any]:
    config = {"library_name": "squeezenet_jax", "model_type": "squeezenet", **json.loads(metadata.describe(source))}
    if source.labels:
        config["id2label"] = {str(k): name for k, name in enumerate(config.pop("labels"))}
    if trained:
        config["training"] = model_card.deciding(trained.settings)
    return config


def _verify(source: Weights, again: Weights) -> None:
    """What `load` reads from the folder is what was exported, to the bit."""
    tensors, expected = flatten(again.params), flatten(source.params)
    same = tensors.keys() == expected.keys() and all(np.array_equal(tensors[name], x) for name, x in expected.items())
    if not same or metadata.describe(again) != metadata.describe(source):
        raise UserError("the exported folder reads back as something else; it was not written")
