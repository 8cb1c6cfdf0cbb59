"""A run's directory: what it was started with, its metrics line by line, and its status.

run.json         settings, overrides, data, command, versions, git revision, devices, cores
metrics.jsonl    one line per log window ("split": "train") and per evaluation ("split": "eval")
status.json      {"status", "message"}
checkpoints/     see `checkpoint.py`
predictions.npz  what became of each image of the final evaluation, see `predictions.py`
network.sqz      the finished network, where training has shared its weights (compress.share)
unreadable.txt   names of images that could not be read, with reasons; there only if there were any
lock             held while a process runs it; says which
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from squeezenet_jax.system import atomic, storage
from squeezenet_jax.system.cores import usable
from squeezenet_jax.system.errors import UserError

FINISHED = ("done", "stalled", "diverged")  # statuses that starting again does not change
COMPRESSED = "network.sqz"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "ml-collections", "tensorflow-datasets", "pillow", "simplejpeg")


def fetch_runs(workdir: Path) -> None:
    """Brings a workdir in a bucket here, but for checkpoints, which a run fetches when it is resumed."""
    storage.fetch(workdir, lambda key: "/checkpoints/" not in key)


def begun(workdir: Path) -> list[str]:
    """The names of the runs that were ever started in a workdir, sorted."""
    return sorted(path.parent.name for path in workdir.glob("*/run.json"))


def whole_steps(epochs: float, steps_per_epoch: float) -> int:
    """The whole number of steps, at least 1, that is nearest to so many epochs.

    Without the last digits: a half is to stay one, and round to the same, where an evaluation's step and epoch are all
    that tells how many steps an epoch has.
    """
    return max(round(round(epochs * steps_per_epoch, 6)), 1)


class RunDirectory:
    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, description: Mapping[str, Any]) -> None:
        """Creates the directory and writes `run.json`: the description and everything about this machine.

        What a resumed run was started with before is kept in its list "earlier_starts". What a killed process left half
        written is removed: the caller holds the lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        atomic.remove_left_over(self.path)
        before = self.read_description()
        earlier = before.pop("earlier_starts", []) + ([before] if before else [])
        for start in earlier:  # a thousand class names in each of a hundred starts would be megabytes
            (start.get("dataset") or {}).pop("class_names", None)
        write_json(self.path / "run.json", {**description, **provenance(), "earlier_starts": earlier})

    @contextlib.contextmanager
    def lock(self) -> Iterator[str | None]:
        """Holds the run for this process; yields None, or who holds it already ("host, process 17").

        The system releases it when the process ends, however it ends. In a bucket it is a lease, and what the bucket
        has of the run is here once it is held.
        """
        if storage.is_remote(self.path):
            with storage.lent(self.path) as holder:
                if holder is None:
                    storage.fetch(self.path)
                yield holder
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                yield file.read().strip() or "another process"
                return
            except OSError:  # a file system without locks: as good as without this
                yield None
                return
            file.truncate(0)
            file.write(f"{platform.node()}, process {os.getpid()}\n")
            file.flush()
            yield None

    def read_description(self) -> dict[str, Any]:
        """What `begin` wrote; empty before it did."""
        return read_json(self.path / "run.json") or {}

    def is_held(self) -> bool:
        """Whether a process runs it; also where the file system does not tell."""
        if storage.is_remote(self.path):
            return storage.is_lent(self.path)
        try:
            with (self.path / "lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    @property
    def status(self) -> str:
        """The status last written; "missing" before there is one."""
        return str(self.read_status().get("status", "missing"))

    def read_status(self) -> dict[str, Any]:
        return read_json(self.path / "status.json") or {}

    def write_status(self, status: str, message: str = "") -> None:
        write_json(self.path / "status.json", {"status": status, "message": storage.named(message)})

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            error.filename = str(path)  # a full disk names none
            raise
        storage.saved(path, lazily=True)

    def add_unreadable(self, *names: str) -> None:
        """Keeps the names of images that could not be read, each once over all starts of the run."""
        path = self.path / "unreadable.txt"
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        known = set(before.splitlines())
        if new := [name for name in names if name not in known]:
            write_text(path, before + "".join(f"{name}\n" for name in new))

    def truncate_metrics(self, *, after: int) -> None:
        """Drops the lines of steps after `after`, which a resumed run will write again, and a torn last line."""
        kept = [record for record in self.read_metrics() if record["step"] <= after]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))

    def read_metrics(self) -> list[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        records = []
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line in text.splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break  # torn by a kill in mid-write; everything behind it is gone anyway
        return records


def provenance() -> dict[str, Any]:
    """What a reader needs to run the same thing again: versions, revision, machine, devices."""
    import jax

    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "git": git_revision(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "cores": len(usable()),
        "processes": jax.process_count(),
        "platform": platform.platform(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # simplejpeg is optional
        return None


def git_revision() -> str | None:
    """The commit of this source tree, with "+changes" where files differ from it; None outside a git checkout."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a file of ours; None where there is none. `UserError` where it is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not what this program writes")
    return value


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    atomic.write(path, text.encode("utf-8"))
