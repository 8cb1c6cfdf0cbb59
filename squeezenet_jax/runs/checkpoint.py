"""Checkpoints of a run: `checkpoints/<step>.safetensors`, the newest few.

One file holds the whole state: a SqueezeNet's is 15 MB, is the same on every device, and is written by one process.
Orbax would have every process take part in every save, and does not notice a changed byte in its data. A file appears
complete or not at all and carries a digest of its content, so a kill, a full disk or a failing one costs at most the
steps since the file before. `safetensors.numpy.load_file` opens them, too.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from squeezenet_jax.system import atomic, storage
from squeezenet_jax.system.errors import UserError

Arrays = dict[str, np.ndarray]  # by path: "params/fire2/squeeze1x1/kernel"


class Unreadable(Exception):
    """A file that is no whole checkpoint; its text is the reason."""


class Checkpoints:
    """The newest `keep` states of a run."""

    def __init__(self, path: Path, *, keep: int) -> None:
        self._path, self._keep = path, keep

    def save(self, step: int, state: Any) -> None:
        """Writes the state of `step`, a tree of arrays, and removes what is older than the newest `keep`.

        Raises:
          OSError: the disk is full or read-only; what was there before still is.
        """
        self._path.mkdir(parents=True, exist_ok=True)
        import jax  # here and below, for whoever only reads

        atomic.write(self._path / f"{step}.safetensors", _encode(_named(jax.device_get(state))))
        for old in steps(self._path)[: -self._keep]:
            path = self._path / f"{old}.safetensors"
            path.unlink()
            storage.removed(path)

    def restore_newest(self, like: Any, notice: Callable[[str], None]) -> Any | None:
        """The newest readable state as a tree of NumPy arrays like `like`; None where there is none.

        What a killed process left half written is removed: the run's lock says that nobody is writing it still. An
        unreadable one is renamed to `<step>.unreadable`, with a notice, and the one before it is tried.

        Raises:
          UserError: a sound one, of another network or program version.
        """
        atomic.remove_left_over(self._path)
        for step in reversed(steps(self._path)):
            path = self._path / f"{step}.safetensors"
            try:
                arrays = read(path)
            except Unreadable as error:
                aside = path.with_suffix(".unreadable")
                path.rename(aside)
                storage.saved(aside)
                storage.removed(path)
                notice(f"checkpoint {step} is unreadable ({error}); moved to {aside}")
            else:
                return _unnamed(arrays, like, path)
        return None


def steps(path: Path) -> list[int]:
    """The steps that a folder has checkpoints of, ascending."""
    names = os.listdir(path) if path.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"(\d+)\.safetensors", name)))


def read(path: Path) -> Arrays:
    """The arrays of one checkpoint, verified.

    Raises:
      Unreadable: damaged.
      OSError: the disk or the network fails, or it is gone; that says nothing about the file.
    """
    content = path.read_bytes()
    try:
        arrays: Arrays = safetensors.numpy.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        expected = header["__metadata__"]["sha256"]
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from None
    if _digest(arrays) != expected:
        raise Unreadable("its content does not match its digest")
    return arrays


def read_newest(path: Path) -> tuple[int, Arrays] | None:
    """(step, arrays) of the newest readable checkpoint in a folder, which stays as it is; None where there is none."""
    for step in reversed(steps(path)):
        with contextlib.suppress(Unreadable):
            return step, read(path / f"{step}.safetensors")
    return None


def _named(state: Any) -> Arrays:
    import jax

    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in paths}


def _unnamed(arrays: Arrays, like: Any, path: Path) -> Any:
    import jax

    shapes = {name: (x.shape, x.dtype) for name, x in arrays.items()}
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    wanted = {name: (leaf.shape, leaf.dtype) for name, (_, leaf) in zip(names, paths, strict=True)}
    if shapes != wanted:
        differing = sorted(name for name in shapes | wanted if shapes.get(name) != wanted.get(name))
        raise UserError(f"{path}: is of another network or program version; {differing[0]} differs")
    return jax.tree.unflatten(structure, [arrays[name] for name in names])


def _encode(arrays: Arrays) -> bytes:
    return safetensors.numpy.save(arrays, metadata={"sha256": _digest(arrays)})


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
