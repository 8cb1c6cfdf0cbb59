"""Where the copy of a place in a bucket lies on this machine, and which place a copy is of. Standard library only."""

import atexit
import contextlib
import fcntl
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from squeezenet_jax.system.errors import UserError, unknown

if TYPE_CHECKING:
    from squeezenet_jax.system.storage.buckets import Bucket

SCHEMES = ("gs", "s3")
PREFIX = "squeezenet_jax-"

_roots: list[Path] = []  # folders that have copies in them, as SCHEME/BUCKET/KEY
_cached: list[Path] = []  # the one of `cached`
_kept_open: list[IO[str]] = []


def expand(place: str | os.PathLike[str], field: str = "") -> Path:
    """The local path of a place: itself, with ~ replaced, or where the copy of a place in a bucket is.

    Raises `UserError`, which begins with `field` and the place where there is a field, for another scheme than
    `SCHEMES`, an address without a bucket, and where the store's client is not installed.
    """
    return _local(place, field, _scratch)


def cached(place: str | os.PathLike[str], field: str = "") -> Path:
    """As `expand`, but the copy stays: $SQUEEZENET_JAX_BUCKETS, or ~/.cache/squeezenet_jax/buckets."""
    return _local(place, field, _cache)


def local_only(place: str | os.PathLike[str], field: str, why: str) -> Path:
    """The local path of what cannot lie in a bucket."""
    if _address(place):
        raise UserError(f"{field}: {os.fspath(place)}: is in a bucket; {why}")
    return expand(place, field)


def is_remote(path: Path) -> bool:
    """Whether a local path is the copy of a place in a bucket."""
    return split(path) is not None


def named(text: str) -> str:
    """A text with the names of places in place of those of their copies."""
    for root in _roots:
        text = re.sub(rf"{re.escape(str(root))}/({'|'.join(SCHEMES)})/", r"\1://", text)
    return text


def split(path: Path) -> "tuple[Bucket, str] | None":
    """(bucket, key) of a copy."""
    home = next((root for root in _roots if path.is_relative_to(root)), None)
    if home is None:
        return None
    scheme, name, *parts = path.relative_to(home).parts
    from squeezenet_jax.system.storage import buckets

    return buckets.connect(scheme, name), "/".join(parts)


def goes_up(path: Path) -> bool:
    """Whether it is a copy that is sent as it changes; one of `cached` is not."""
    return bool(_roots) and split(path) is not None and not (_cached and path.is_relative_to(_cached[0]))


def _address(place: str | os.PathLike[str]) -> re.Match[str] | None:
    """Of a `Path` too, which has one slash where an address has two."""
    return re.match(rf"({'|'.join(SCHEMES)}):/{{1,2}}(.*)", os.fspath(place), re.DOTALL)


def _local(place: str | os.PathLike[str], field: str, root: Callable[[], Path]) -> Path:
    text = os.fspath(place)
    before = f"{field}: {text}: " if field else ""
    match = _address(text)
    if match is None:
        if other := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text):
            raise UserError(f"{before}{unknown('scheme', other[1], SCHEMES)}")
        return Path(os.path.expanduser(text))
    scheme, (name, _, key) = match[1], match[2].partition("/")
    parts = [part for part in key.split("/") if part]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{2,}", name) or {".", ".."} & set(parts):
        raise UserError(
            f"{before or 'it '}is not allowed; it must be {scheme}://BUCKET/PATH, with 3 characters or more in BUCKET"
        )
    from squeezenet_jax.system.storage import buckets

    buckets.check_installed(scheme, before)
    path = root().joinpath(scheme, name, *parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@functools.cache
def _scratch() -> Path:
    """A new folder, removed when the process ends; those of processes that were killed are removed now."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (left / ".held").open() as file:  # another user's, or held
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    while True:
        root = Path(os.path.realpath(tempfile.mkdtemp(prefix=PREFIX)))
        file = (root / ".held").open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # else another process that starts now took it for one that is left
            break
        file.close()
    _kept_open.append(file)  # until the process ends, however it ends
    atexit.register(forget)
    _roots.append(root)
    return root


def forget() -> None:
    """Removes the copies that are not `cached`: the process is about to end."""
    for root in _roots:
        if root not in _cached:
            shutil.rmtree(root, ignore_errors=True)


@functools.cache
def _cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    chosen = os.environ.get("SQUEEZENET_JAX_BUCKETS") or os.path.join(cache, "squeezenet_jax", "buckets")
    root = Path(os.path.abspath(os.path.expanduser(chosen)))
    _roots.append(root)
    _cached.append(root)
    return root
