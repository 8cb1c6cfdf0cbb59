"""Files that appear complete or not at all. Standard library only."""

import contextlib
import os
import platform
import re
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Replaces the file in one step, once its content is on the disk: a kill or a full disk leaves the old or the new.

    The content is first in `.<name>.<host>.<process>` beside it, because hosts may share the folder.

    Raises:
      OSError: the disk is full or read-only; it names `path`.
    """
    scratch = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        error.filename = str(path)  # a full disk names none
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


def remove_left_over(folder: Path) -> None:
    """Removes what killed processes left half written; only for who knows that nobody is writing there."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.\d+", path.name):
            path.unlink()
