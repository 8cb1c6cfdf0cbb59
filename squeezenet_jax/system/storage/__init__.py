"""Places that a person names: a local path, or gs://BUCKET/PATH and s3://BUCKET/PATH. Standard library only.

All other code knows local paths only. A place in a bucket has a local copy: `expand` says where, `fetch` brings what
the bucket has, and whatever is written there by `atomic.write` goes up, in the order of the writes and some moments
behind them. So a bucket always holds what the folder held at some moment, as a disk does after a kill; an object
appears complete or not at all. Copies are temporary; `cached` ones, of datasets, stay.

Read next: `copies.py` (where copies lie), `uploads.py`, `lease.py` (who may write a run), `buckets.py` (the stores'
clients).
"""

import concurrent.futures
import contextlib
import functools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from squeezenet_jax.system.errors import TryAgain, UserError
from squeezenet_jax.system.storage.copies import SCHEMES, cached, expand, forget, is_remote, local_only, named, split
from squeezenet_jax.system.storage.uploads import drain, removed, saved

__all__ = [
    "SCHEMES",
    "brought",
    "cached",
    "drain",
    "expand",
    "fetch",
    "fetch_once",
    "forget",
    "is_lent",
    "is_remote",
    "lent",
    "local_only",
    "named",
    "publish",
    "removed",
    "saved",
]

AT_ONCE = 8  # downloads
PARTS = ".parts-"
LEFT_SECONDS = 24 * 3600
WORTH_SAYING = 100 << 20  # bytes to download
LEASE = "lock"  # the object that says who runs a run; never copied


def fetch(path: Path, wanted: Callable[[str], bool] = lambda key: True, *, exact: bool = True) -> None:
    """Makes the copy at `path`, a file or a folder, what the bucket has, of what is `wanted`; nothing for a local path.

    Files that are the same already stay; others go, if it is to be `exact`. `TryAgain` where the bucket cannot be
    reached.
    """
    if (found := split(path)) is None:
        return
    drain()
    bucket, key = found
    root = path.parents[key.count("/")] if key else path
    below = bucket.entries(f"{key}/" if key else "")
    if not below and key:
        below = {name: entry for name, entry in bucket.entries(key).items() if name == key}
    needed = {}
    for name, entry in below.items():
        local = root / name
        if name.endswith("/") or local.name == LEASE or not wanted(name):
            continue
        if {"", ".", ".."} & set(name.split("/")):
            raise UserError(f"{bucket.address(name)}: is an object whose name is no path")
        status = local.stat() if local.exists() else None
        if status is None or status.st_size != entry.size or abs(status.st_mtime - entry.updated) > 1e-3:
            needed[name] = entry
    if exact and path.is_dir():
        for local in path.rglob("*"):
            name = local.relative_to(root).as_posix()
            if local.is_file() and name not in below and wanted(name):
                local.unlink()

    if not needed:
        return
    if (size := sum(entry.size for entry in needed.values())) > WORTH_SAYING:
        where = bucket.address(key)
        print(f"fetching {len(needed):,} files, {size / 1e9:.1f} GB, from {where}", file=sys.stderr, flush=True)

    def bring(numbered: tuple[int, str]) -> None:
        number, name = numbered
        part, local = Path(parts) / str(number), root / name
        bucket.download(name, part)
        os.utime(part, (needed[name].updated,) * 2)
        local.parent.mkdir(parents=True, exist_ok=True)
        part.replace(local)

    # Parts lie beside what is listed, on the same disk.
    _remove_left_parts(root.parent)
    with (
        tempfile.TemporaryDirectory(prefix=PARTS, dir=root.parent, ignore_cleanup_errors=True) as parts,
        concurrent.futures.ThreadPoolExecutor(AT_ONCE) as executor,
    ):
        try:
            jobs = [executor.submit(bring, numbered) for numbered in enumerate(needed)]
            for job in jobs:
                with contextlib.suppress(FileNotFoundError):  # it was removed since it was listed
                    job.result()
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


def _remove_left_parts(folder: Path) -> None:
    """What killed processes have left of their downloads: nothing came to it for a day."""
    for left in folder.glob(f"{PARTS}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def brought(place: str | os.PathLike[str], field: str = "") -> Path:
    """`expand`, with all that the bucket has there."""
    path = expand(place, field)
    fetch(path)
    return path


@functools.cache
def fetch_once(path: Path, wanted: Callable[[str], bool] = lambda key: True) -> None:
    """`fetch` of what only grows, once in a process: what was made here, and has not gone up, stays."""
    fetch(path, wanted, exact=False)


def publish(path: Path) -> None:
    """Sends all files below a cached folder, those that describe it last: without them it is no dataset."""
    found = split(path)
    assert found is not None
    bucket, key = found
    root = path.parents[key.count("/")]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: (file.suffix == ".json", file.name == "features.json")):
        bucket.write(file.relative_to(root).as_posix(), file.read_bytes())
    for name, entry in bucket.entries(f"{key}/").items():
        if (root / name).is_file():
            os.utime(root / name, (entry.updated,) * 2)


@contextlib.contextmanager
def lent(path: Path) -> Iterator[str | None]:
    """Holds the folder `path` of a bucket for this process; yields None, or who holds it already."""
    from squeezenet_jax.system.storage import lease

    found = split(path)
    assert found is not None
    bucket, key = found
    with lease.held(bucket, f"{key}/{LEASE}", path) as holder:
        try:
            yield holder
        except BaseException:
            with contextlib.suppress(TryAgain, UserError):  # what ended it is worth more
                drain()
            raise
        drain()


def is_lent(path: Path) -> bool:
    """Whether a process seems to hold the folder `path` of a bucket."""
    from squeezenet_jax.system.storage import lease

    found = split(path)
    assert found is not None
    bucket, key = found
    return lease.is_held(bucket, f"{key}/{LEASE}")
