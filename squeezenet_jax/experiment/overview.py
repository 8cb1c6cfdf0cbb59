"""What workdirs hold by now, run by run: how each stands, how far it is and when it last wrote. No jax, no data.

Looked at from outside, while runs run or long after. Read next: `commands/runs.py`, which shows it; `workdirs.py`,
which compares runs that have ended.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from squeezenet_jax.experiment.sweep import MANIFEST
from squeezenet_jax.runs.directory import FINISHED, RunDirectory, begun, read_json
from squeezenet_jax.system import storage
from squeezenet_jax.system.errors import UserError

FILES = (MANIFEST, "run.json", "status.json", "metrics.jsonl")  # all that is read
NOT_STARTED, KILLED = "not started", "killed"


@dataclasses.dataclass(frozen=True)
class Standing:
    """How one run stands.

    Attributes:
      status: What it last wrote, "killed" where it says "running" and no process is at it, or "not started".
      epoch: How many epochs it has trained; None before its first log line.
      epochs: How many it is to train; None where it does not say.
      top1: Share of the evaluated images, in its newest evaluation; None before there is one.
      written: When it last wrote something, in seconds since 1970; None where it wrote nothing.
      message: Why it failed, or what else it said as it ended.
    """

    name: str
    status: str
    epoch: float | None = None
    epochs: float | None = None
    loss: float | None = None
    top1: float | None = None
    images_per_second: float | None = None
    written: float | None = None
    message: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether starting again would not change it."""
        return self.status in FINISHED


@dataclasses.dataclass(frozen=True)
class Overview:
    """A workdir and how its runs stand, the planned ones first, in the order of the sweep."""

    path: Path
    title: str  # "bypass on digits"; why it cannot be read, where `runs` is empty
    runs: tuple[Standing, ...]


def look(place: Path) -> list[Overview]:
    """The workdirs at and below `place`, in the order of their paths; `UserError` where there is no such folder.

    A workdir whose manifest is damaged is one without runs, which says so: the others are still worth seeing.
    """
    storage.fetch(place, lambda key: key.rpartition("/")[2] in FILES)
    if not place.is_dir():
        raise UserError(f"DIR: {place} is no folder")
    found = []
    for path in _workdirs(place):
        try:
            found.append(_overview(path))
        except UserError as error:
            found.append(Overview(path, str(error), ()))
    return found


def _workdirs(place: Path) -> Iterator[Path]:
    """A workdir may lie in another one (the trials of --tune do); what lies in a run's directory is the run's."""
    for folder, inner, files in os.walk(place):
        if MANIFEST in files:
            yield Path(folder)
        inner[:] = [] if "run.json" in files else sorted(name for name in inner if not name.startswith("."))


def _overview(path: Path) -> Overview:
    manifest = read_json(path / MANIFEST) or {}
    planned, shared = manifest.get("runs", {}), manifest.get("config", {})
    if not isinstance(planned, dict) or not isinstance(shared, dict):
        raise UserError(f"{path / MANIFEST}: is not what this program writes")
    names = dict.fromkeys([*planned, *begun(path)])
    title = f"{manifest.get('experiment', '?')} on {manifest.get('preset', '?')}"
    return Overview(path, title, tuple(_standing(RunDirectory(path / name)) for name in names))


def _standing(directory: RunDirectory) -> Standing:
    name = directory.path.name
    times = [at for file in FILES if (at := _changed(directory.path / file)) is not None]
    if not times:
        return Standing(name, NOT_STARTED)
    try:
        said, description = directory.read_status(), directory.read_description()
    except UserError as error:
        return Standing(name, "unreadable", written=max(times), message=str(error))
    status = str(said.get("status", NOT_STARTED))
    if status == "running" and not directory.is_held():
        status = KILLED
    newest = _newest(directory.path / "metrics.jsonl")
    train, evaluation = newest.get("train", {}), newest.get("eval", {})
    epochs = ((description.get("settings") or {}).get("train") or {}).get("epochs")
    return Standing(
        name,
        status,
        epoch=max((record["epoch"] for record in newest.values()), default=None),
        epochs=epochs,
        loss=train.get("loss"),
        top1=evaluation.get("top1"),
        images_per_second=train.get("images_per_second"),
        written=max(times),
        message=str(said.get("message", "")),
    )


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None


def _newest(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The newest whole line of each split."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return {}
    return _read_newest(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=10_000)  # who follows a sweep looks at every run again and again
def _read_newest(path: Path, changed: int, size: int) -> Mapping[str, Mapping[str, Any]]:
    newest: dict[str, Any] = {}
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
                newest[record["split"]] = {"epoch": float(record["epoch"]), **record}
            except (ValueError, KeyError, TypeError):
                break  # torn by a kill, or being written at this moment
    return newest
