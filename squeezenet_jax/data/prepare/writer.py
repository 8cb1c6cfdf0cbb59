"""Writes a SOURCE as a TFDS data set that can be killed at any moment and continued.

    OUT/NAME/1.0.0/                  the data set; appears complete, by one rename
    OUT/NAME/incomplete.1.0.0/       until then
        lock                         held while a process writes
        begun.json                   the options, and the digest of the source's listing (names, classes, sizes)
        source.tar                   a compressed archive, unpacked once
        data/                        what becomes 1.0.0: the shards and, at the end, the metadata
        shards/                      a .json per finished shard: counts, shapes, unreadable files

The metadata are written last: the images' shape, which they state, is known when all have been decoded. Read next:
`layouts.py`, where the images come from, then `shards.py`.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import io
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from squeezenet_jax.data import archives, catalog, layouts
from squeezenet_jax.data.layouts import Collection, Item
from squeezenet_jax.data.prepare import metadata
from squeezenet_jax.data.prepare.metadata import Summary
from squeezenet_jax.data.prepare.shards import (
    SHARD_BYTES,
    Report,
    Shard,
    labels,
    plan,
    reader,
    sync,
    threads,
    write_json,
)
from squeezenet_jax.data.tfds_source import labels_file
from squeezenet_jax.system import atomic
from squeezenet_jax.system.errors import UserError

VERSION = "1.0.0"
MIN_SHORT_SIDE = 8
ORIGIN = "prepare.json"  # in the data set: what it was made from, and how
UNREADABLE, IGNORED = "unreadable.txt", "ignored.txt"  # in the data set, where there are any


@dataclasses.dataclass(frozen=True)
class Prepared:
    directory: Path
    name: str
    sizes: dict[str, int]  # examples by split
    num_classes: int
    unreadable: tuple[str, ...]  # "split/name: reason"
    ignored: int  # what is no image by its place: hidden, in no class folder, a link to nothing
    ignored_names: tuple[str, ...]  # with reasons; those of a data set that an earlier version wrote are not known
    was_there: bool


def prepare(
    source: Path,
    out: Path,
    report: Report,
    *,
    short_side: int | None = None,
    name: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Prepared:
    """Writes `<out>/<name>/1.0.0` from a folder or an archive of images, or continues to.

    Raises:
      UserError: a wrong or damaged source; other options than those it was begun with; cannot be written.
    """
    if short_side is not None and short_side < MIN_SHORT_SIDE:
        raise UserError(f"--short-side: {short_side} is not allowed; it must be at least {MIN_SHORT_SIDE} (px)")
    kind = layouts.detect(source)
    name = _check_name(layouts.default_name(source, kind) if name is None else name)
    newest = catalog.tfds_directory(name, str(out))
    if newest is not None and catalog.version(newest) > catalog.version(out / name / VERSION):
        raise UserError(f"{newest}: would be read instead of a {VERSION} beside it; give another --name or --out")
    work = out / name / f"incomplete.{VERSION}"
    job = _Job(source, kind, name, work, out / name / VERSION, short_side, shard_bytes, report)
    try:
        if job.final.exists():
            return job.finished()
        with _made(out), _made(out / name), _locked(work), warnings.catch_warnings():
            # about large images, odd EXIF data, palettes: an image can be decoded or it cannot
            warnings.filterwarnings("ignore", module=r"PIL\.")
            return job.finished() if job.final.exists() else job.write()  # another process may have been faster
    except OSError as error:
        raise UserError(
            f"{error.filename or work}: cannot be written ({error.strerror or error}); "
            "the same command continues once that is mended"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Job:
    source: Path
    kind: layouts.Kind
    name: str
    work: Path
    final: Path
    short_side: int | None
    shard_bytes: int
    report: Report

    @property
    def options(self) -> dict[str, Any]:
        """What must be the same when it is continued, under the names that a person knows."""
        return {
            "SOURCE": self.source.resolve().name,
            "bytes of SOURCE": self.source.stat().st_size if self.kind == "tar" else None,
            "--short-side": self.short_side,
            "bytes a shard": self.shard_bytes,
        }

    def write(self) -> Prepared:
        for folder in ("data", "shards"):
            (self.work / folder).mkdir(exist_ok=True)
        for path in (self.work, self.work / "data", self.work / "shards"):
            atomic.remove_left_over(path)  # this process holds the lock
        begun = _read_json(self.work / "begun.json")
        if begun is None:
            write_json(self.work / "begun.json", self.options)
        else:
            self._check_same(begun, f"begun in {self.work}", "give the same again, or delete that folder to start over")
        try:
            collection, splits, digest = self._list()
            if begun is not None and begun.get("digest") not in (None, digest):
                raise UserError(
                    f"{self.source}: has changed since {self.work} was begun; delete {self.work} to start over"
                )
        except UserError:
            if begun is None:  # a wrong source leaves nothing behind
                shutil.rmtree(self.work)
            raise
        write_json(self.work / "begun.json", {**self.options, "digest": digest})

        shards = plan(self.name, splits, self.work / "data", self.work / "shards", self.shard_bytes)
        missing = [shard for shard in shards if shard.summary() is None]
        total, left = (sum(len(shard.items) for shard in some) for some in (shards, missing))
        if left < total:
            self.report.say(f"continuing with {total - left:,} of {total:,} images done")
        self.report.begin("preparing", left, "images")
        with reader(collection.archives) as read, threads() as executor:
            for shard in missing:
                shard.write(read, executor, self.short_side, list(collection.class_names), self.report)

        prepared = self._write_metadata(shards, collection, digest)
        data = self.work / "data"
        for path in (*data.iterdir(), data):
            sync(path)
        data.rename(self.final)
        sync(self.final.parent)
        shutil.rmtree(self.work)
        return prepared

    def _list(self) -> tuple[Collection, dict[str, list[Item]], str]:
        """What the source holds, each split in the order on disk, and a digest of that."""
        tar = self._uncompressed()
        self.report.say(f"listing {self.source}")
        collection = layouts.collect(self.source, self.kind, tar)
        splits = {split: layouts.in_order(split, items) for split, items in collection.splits.items()}
        return collection, splits, _digest(collection.class_names, splits)

    def _uncompressed(self) -> Path:
        """The source, or the tar inside it: a compressed one can only be read from front to back."""
        if self.kind != "tar" or archives.compression(self.source) is None:
            return self.source
        tar, part = self.work / "source.tar", self.work / "source.tar.part"
        if not tar.exists():
            self.report.begin("unpacking", self.source.stat().st_size, "bytes")
            archives.unpack(self.source, part, self.report.advance)
            sync(part)
            part.replace(tar)
        return tar

    def _write_metadata(self, shards: list[Shard], collection: Collection, digest: str) -> Prepared:
        data = self.work / "data"
        by_split: dict[str, list[Summary]] = {}
        unreadable = []
        for shard in shards:
            summary = shard.summary()
            assert summary is not None
            by_split.setdefault(shard.split, []).append(summary)
            unreadable += [archives.printable(f"{shard.split}/{file}: {why}") for file, why in summary.unreadable]
        unreadable.sort()
        sizes = {split: sum(summary.examples for summary in summaries) for split, summaries in by_split.items()}
        for split, size in sizes.items():
            if size == 0:
                first = next(line for line in unreadable if line.startswith(f"{split}/"))
                raise UserError(
                    f"{self.source}: no file of {split} can be read as an image; the first: {first}; "
                    f"delete {self.work} to start over"
                )
        resized = f", larger ones resized to a short side of {self.short_side} px" if self.short_side else ""
        description = f"Images and classes of {self.source.resolve().name}{resized}."
        metadata.write(data, self.name, VERSION, description, list(collection.class_names), by_split)
        for split, label in labels(shards).items():
            content = io.BytesIO()
            np.save(content, label)
            atomic.write(labels_file(data, split), content.getvalue())
        if unreadable:
            atomic.write(data / UNREADABLE, "".join(f"{line}\n" for line in unreadable).encode("utf-8"))
        if collection.ignored:
            atomic.write(data / IGNORED, "".join(f"{line}\n" for line in collection.ignored).encode("utf-8"))
        ignored = len(collection.ignored)
        origin = {"digest": digest, "ignored": ignored, "pillow": importlib.metadata.version("pillow")}
        write_json(data / ORIGIN, {**self.options, **origin})
        num_classes = len(collection.class_names)
        return Prepared(
            self.final, self.name, sizes, num_classes, tuple(unreadable), ignored, collection.ignored, False
        )

    def finished(self) -> Prepared:
        """The data set that is there, if it is the one that this job would write."""
        origin = _read_json(self.final / ORIGIN)
        if origin is None:
            raise UserError(f"{self.final}: is there and was not written by this command; give another --name or --out")
        self._check_same(origin, f"prepared in {self.final}", "give another --name or --out, or delete it")
        # Not the hours of unpacking a compressed tar again, nor of reading ImageNet's million headers.
        if self.kind == "folder" or (self.kind == "tar" and archives.compression(self.source) is None):
            digest = self._list()[2]
            if origin.get("digest") not in (None, digest):
                raise UserError(
                    f"{self.source}: is another one than {self.final} was prepared from, or has changed since; "
                    "give another --name or --out, or delete it"
                )
        if self.work.exists():
            shutil.rmtree(self.work)  # it was killed between the last two steps
        info = tfds.builder_from_directory(self.final).info
        sizes = {split: split_info.num_examples for split, split_info in info.splits.items()}
        num_classes = info.features["label"].num_classes
        unreadable, ignored = (_lines(self.final / name) for name in (UNREADABLE, IGNORED))
        return Prepared(self.final, self.name, sizes, num_classes, unreadable, origin["ignored"], ignored, True)

    def _check_same(self, recorded: dict[str, Any], done: str, remedy: str) -> None:
        for field, value in self.options.items():
            if recorded.get(field) != value:
                now, before = ("no value" if x is None else x for x in (value, recorded.get(field)))
                raise UserError(f"{field}: {now} is not what was {done}, which had {before}; {remedy}")


def _lines(path: Path) -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8").split("\n")[:-1]) if path.exists() else ()


def _check_name(name: str) -> str:
    if name in catalog.NOT_TFDS:
        raise UserError(f"--name: {name} means other images already; give another --name")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f'--name: "{archives.printable(name)}" cannot be the name of a TFDS data set; allowed: lower-case letters, '
            "digits and _, a letter first"
        )
    return name


def _digest(class_names: tuple[str, ...], splits: dict[str, list[Item]]) -> str:
    """Of the listing: names, classes and sizes of all files."""
    digest = hashlib.sha256(json.dumps(class_names).encode())
    for split, items in splits.items():
        for item in items:
            digest.update(f"{split}/{item.file_name}\0{item.label}\0{item.size}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder that is there. One that was not, and stays empty because of wrong input, is removed again."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except UserError:
        if is_new:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
        raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """A folder that is there and this process's own; the lock ends with the process, however that ends."""
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is writing there") from None
        yield


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None
