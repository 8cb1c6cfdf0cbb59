"""Which images belong to which shard, and the writing of one shard.

A shard is a pure function of its images' names and bytes and the options. An unreadable image makes it shorter.
"""

import contextlib
import dataclasses
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tensorflow_datasets.core import example_serializer, file_adapters, naming

from squeezenet_jax.data import archives
from squeezenet_jax.data.images import decoding
from squeezenet_jax.data.layouts import Item
from squeezenet_jax.data.prepare import metadata
from squeezenet_jax.data.prepare.images import Picture, convert
from squeezenet_jax.data.prepare.metadata import Summary
from squeezenet_jax.system import atomic
from squeezenet_jax.system.cores import cores
from squeezenet_jax.system.errors import UserError

# Bytes of the source in one shard: a few seconds of work to lose, and about 1,100 files for ImageNet. TFDS itself aims
# at 64 MiB to 1 GiB. A source smaller than this gets one shard per split.
SHARD_BYTES = 128 << 20
IMAGES_PER_TASK = 16  # handing a task to a thread costs as much as decoding a tiny image
TASKS_PER_THREAD = 4  # waiting or done, so that memory stays bounded

Read = Callable[[Item], bytes]


class Report(Protocol):
    """Who is told how far the work is."""

    def begin(self, what: str, total: int, unit: str) -> None: ...

    def advance(self, count: int) -> None: ...

    def say(self, text: str) -> None: ...


@dataclasses.dataclass(frozen=True)
class Shard:
    split: str
    items: list[Item]
    path: Path
    summary_path: Path

    def summary(self) -> Summary | None:
        """None if the shard is not finished."""
        try:
            summary = Summary(**json.loads(self.summary_path.read_text()))
            return summary if self.path.stat().st_size == summary.file_bytes else None
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(
        self, read: Read, executor: ThreadPoolExecutor, short_side: int | None, class_names: list[str], report: Report
    ) -> None:
        """The file appears complete or not at all, after its summary.

        Raises:
          UserError, OSError: cannot be written.
        """
        part = self.path.with_name(f"{self.path.name}.part")
        adapter = file_adapters.ADAPTER_FOR_FORMAT[metadata.FORMAT]
        tally = _Tally(class_names)
        pictures = _convert_all(self.items, read, executor, short_side)
        try:
            adapter.write_examples(part, tally.serialized(pictures, report))
        except RuntimeError as error:  # array_record's way to say that a disk is full
            reason = str(error).partition(";")[0]
            raise UserError(
                f"{part}: cannot be written ({reason}); the same command continues once that is mended"
            ) from error
        sync(part)
        write_json(self.summary_path, dataclasses.asdict(tally.summary(part.stat().st_size)))
        part.replace(self.path)


def plan(name: str, splits: dict[str, list[Item]], data: Path, summaries: Path, shard_bytes: int) -> list[Shard]:
    """Equal numbers of neighbours for each shard of a split, as TFDS divides them."""
    shards = []
    for split, items in splits.items():
        number = min(len(items), max(1, -(-sum(item.size for item in items) // shard_bytes)))
        bounds = [round(len(items) * shard / number) for shard in range(number + 1)]
        template = naming.ShardedFileTemplate(
            data_dir=data, dataset_name=name, split=split, filetype_suffix=metadata.FORMAT.file_suffix
        )
        for index, (start, stop) in enumerate(itertools.pairwise(bounds)):
            path = Path(template.sharded_filepath(shard_index=index, num_shards=number))
            shards.append(Shard(split, items[start:stop], path, summaries / f"{path.name}.json"))
    return shards


def labels(shards: Iterable[Shard]) -> dict[str, np.ndarray]:
    """Those of finished shards, by split: int32 [N], in the order of the records."""
    found: dict[str, list[int]] = {}
    for shard in shards:
        summary = shard.summary()
        assert summary is not None
        left_out = {name for name, _ in summary.unreadable}
        found.setdefault(shard.split, []).extend(x.label for x in shard.items if x.file_name not in left_out)
    return {split: np.array(label, np.int32) for split, label in found.items()}


@contextlib.contextmanager
def reader(archive_paths: Iterable[str]) -> Iterator[Read]:
    """A function from any thread that returns an item's bytes."""
    with contextlib.ExitStack() as stack:
        files = {path: stack.enter_context(open(path, "rb", buffering=0)) for path in archive_paths}

        def read(item: Item) -> bytes:
            try:
                if item.path not in files:
                    return decoding.read(item.path)
                decoding.check_bytes(item.size)
                return os.pread(files[item.path].fileno(), item.size, item.offset)
            except OSError as error:  # the disk or the network: no property of an image
                path = archives.printable(item.path)
                raise UserError(
                    f"{path}: cannot be read ({error.strerror or error}); the same command continues"
                ) from None

        yield read


@contextlib.contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """One thread for each core that this process may use; Pillow decodes without Python's lock."""
    executor = ThreadPoolExecutor(cores())
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _convert_all(
    items: list[Item], read: Read, executor: ThreadPoolExecutor, short_side: int | None
) -> Iterator[tuple[Item, Picture | str]]:
    """Each item in order with its picture, or why it has none; decoded ahead in all threads."""

    def task(batch: list[Item]) -> list[Picture | str]:
        return [_convert_one(item, read, short_side) for item in batch]

    batches = (items[start : start + IMAGES_PER_TASK] for start in range(0, len(items), IMAGES_PER_TASK))
    pending: deque[tuple[list[Item], Future[list[Picture | str]]]] = deque()
    ahead = TASKS_PER_THREAD * cores()
    for batch in batches:
        pending.append((batch, executor.submit(task, batch)))
        if len(pending) > ahead:
            done, future = pending.popleft()
            yield from zip(done, future.result(), strict=True)
    for done, future in pending:
        yield from zip(done, future.result(), strict=True)


def _convert_one(item: Item, read: Read, short_side: int | None) -> Picture | str:
    try:
        return convert(read(item), short_side)
    except decoding.Undecodable as error:
        return str(error)


class _Tally:
    """Serializes examples and counts what the metadata will say about them."""

    def __init__(self, class_names: list[str]) -> None:
        self._examples = self._bytes = 0
        self._sizes: set[tuple[int, int]] = set()
        self._channels: set[int] = set()
        self._unreadable: list[list[str]] = []
        self._features = metadata.features((None, None, 3), class_names)  # the shape has no part in the stored bytes
        self._serializer = example_serializer.ExampleSerializer(self._features.get_serialized_info())

    def serialized(self, pictures: Iterable[tuple[Item, Picture | str]], report: Report) -> Iterator[tuple[str, bytes]]:
        for item, picture in pictures:
            report.advance(1)
            if isinstance(picture, str):
                self._unreadable.append([item.file_name, picture])
                continue
            example = {"image": picture.data, "label": item.label, "file_name": item.file_name}
            # TFDS's own `serialize_example` writes the three features in an order that protobuf draws anew for every
            # process; with `deterministic` it is sorted.
            message = self._serializer.get_tf_example(self._features.encode_example(example))
            record = message.SerializeToString(deterministic=True)
            self._examples += 1
            self._bytes += len(record)
            self._channels.add(picture.channels)
            if len(self._sizes) < 2:
                self._sizes.add((picture.height, picture.width))
            yield item.file_name, record

    def summary(self, file_bytes: int) -> Summary:
        sizes = sorted(map(list, self._sizes))
        return Summary(self._examples, self._bytes, file_bytes, sizes, sorted(self._channels), self._unreadable)


def write_json(path: Path, content: Any) -> None:
    """Replaces the file as a whole."""
    atomic.write(path, (json.dumps(content, indent=2) + "\n").encode())


def sync(path: Path) -> None:
    """Puts a file or folder on the disk itself, so that a power cut cannot undo what follows."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
