"""Images as they lie in folders, `train/<class>/*.jpg` and `test/<class>/*.jpg` (or `val`), without preparing them.

Classes, splits and order are those of `prepare`, so a folder and the data set made from it give the same batches.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence

from squeezenet_jax.data import archives, layouts
from squeezenet_jax.data.images import decoding
from squeezenet_jax.data.images.decoding import Undecodable
from squeezenet_jax.data.layouts import Collection, Item
from squeezenet_jax.system import storage
from squeezenet_jax.system.errors import UserError


@functools.lru_cache(maxsize=2)  # a plan asks for it several times
def scan(directory: str) -> Collection:
    """Lists the images below `directory`. Raises `UserError` where it does not hold split and class folders."""
    root = storage.cached(directory, "data.dir")
    storage.fetch(root)
    if not root.is_dir():
        raise UserError(f"data.dir: {directory or '(empty)'} is no folder; allowed: one that has {layouts.ALLOWED}")
    try:
        return layouts.collect(root, "folder", root)
    except UserError as error:
        raise UserError(f"data.dir: {error}") from None


@functools.lru_cache(maxsize=2)
def linked(directory: str, split: str, other: str) -> int:
    """How many files of a split are files of `other`, too: a folder may be a link to another one."""
    seen = set(map(_file, scan(directory).splits[other]))
    return sum(_file(item) in seen for item in scan(directory).splits[split])


def _file(item: Item) -> tuple[int, int] | str:
    try:
        status = os.stat(item.path)
    except OSError:  # gone since it was listed
        return item.path
    return status.st_dev, status.st_ino


def records(directory: str, split: str, start: int, stop: int) -> "FolderRecords":
    """The examples `start:stop` of a split, in the order that mixes the classes."""
    return FolderRecords(layouts.in_order(split, scan(directory).splits[split])[start:stop])


@dataclasses.dataclass(frozen=True)
class FolderRecords:
    """Image files."""

    items: Sequence[Item]

    def __len__(self) -> int:
        return len(self.items)

    def fetch(self, index: Sequence[int]) -> list[tuple[bytes | Undecodable, int]]:
        """(content, label) of some; instead of the content, why there is none: since it was listed, a file may be gone.

        Raises:
          OSError: the disk or the network fails; that is no property of an image.
        """
        return [(_content(self.items[i].path), self.items[i].label) for i in index]

    @property
    def labels(self) -> list[int]:
        return [item.label for item in self.items]

    def name(self, index: int) -> str:
        return archives.printable(self.items[index].path)


def _content(path: str) -> bytes | Undecodable:
    try:
        return decoding.read(path)
    except Undecodable as error:
        return error
