"""Files that appear complete or not at all. Standard library only."""

import contextlib
import hashlib
import os
import platform
import re
import stat
from pathlib import Path

from squeezenet_jax.system import storage
from squeezenet_jax.system.errors import UserError

MAX_NAME = 255  # bytes, of Linux's and macOS's file systems


def write(path: Path, content: bytes) -> None:
    """Replaces the file in one step, once its content is on the disk: a kill or a full disk leaves the old or the new.

    A symbolic link stays, what it points to is replaced; the file keeps its permissions; a device or a pipe is written
    to. Until then the content has no name or, where the file system knows no such files, `.<name>.<host>.<process>`
    beside the file, because hosts may share the folder.

    The copy of a place in a bucket is sent there, too (`storage.saved`).

    Raises:
      OSError: the disk is full or read-only, the name is too long; it names `path`.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            with target.open("wb") as file:
                file.write(content)
        else:
            _replace(target, content)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # a full disk names none, a rename the scratch file
        raise
    storage.saved(path)


def check_place(path: Path, field: str) -> None:
    """Raises `UserError` where the file cannot be put, before the work that it is for."""
    if path.is_dir():
        raise UserError(f"{field} {path}: is a folder")
    if not path.parent.is_dir():
        raise UserError(f"{field} {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{field} {path}: {path.parent} cannot be written to")


def remove_left_over(folder: Path) -> None:
    """Removes what killed processes left half written; only for who knows that nobody is writing there."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.\d+", path.name):
            path.unlink()


def _replace(target: Path, content: bytes) -> None:
    scratch = _scratch(target)
    try:
        with open(_open(scratch), "wb") as file:
            if target.exists():
                with contextlib.suppress(OSError):  # a file system without permissions
                    os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if os.fstat(file.fileno()).st_nlink == 0:
                scratch.unlink(missing_ok=True)
                # Only with a `src_dir_fd`, which an absolute path ignores, does `os.link` follow the link in /proc.
                os.link(f"/proc/self/fd/{file.fileno()}", scratch, src_dir_fd=file.fileno())
        os.replace(scratch, target)
    except BaseException:  # Ctrl-C too
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


def _open(scratch: Path) -> int:
    """A file without a name in the folder, which vanishes with the process, or `scratch` where there is no such thing.

    Its permissions are what the umask leaves.
    """
    if hasattr(os, "O_TMPFILE") and os.path.exists("/proc/self/fd"):
        with contextlib.suppress(OSError):
            return os.open(scratch.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
    return os.open(scratch, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)


def _scratch(target: Path) -> Path:
    name = f".{target.name}.{platform.node()}.{os.getpid()}"
    if len(os.fsencode(name)) > MAX_NAME:
        name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}.{platform.node()[:64]}.{os.getpid()}"
    return target.with_name(name)
