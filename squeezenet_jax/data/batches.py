"""Batches as pure functions: of (seed, step) in training, of the position in evaluation.

A batch is {"image": uint8 [B, H, W, C], "label": int32 [B], "mask": int32 [B], "index": int32 [B]}; `mask` is 0 on
padding and on images that cannot be read, whose names are under "unreadable"; `index` is the example's place in its
split. With `rows`, only that stretch of the batch is read: the part of one of several processes.
Read next: `loader.py`, which makes batches ahead of time.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from squeezenet_jax.data.sources import Source
from squeezenet_jax.system.randomness import Purpose

Batch = dict[str, Any]

PART_ROWS = 64  # at least, where workers share a batch: decoding them takes some 0.1 s, handing them over 0.01 s


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """Endless epochs, each in an order of its own; a batch may begin in one and end in the next, so none is short."""

    source: Source
    batch_size: int
    seed: int
    rows: tuple[int, int | None] = (0, None)  # start, stop

    @property
    def steps_per_epoch(self) -> float:
        return len(self.source) / self.batch_size

    def batch_at(self, step: int) -> Batch:
        """The batch of one step; needs nothing of the steps before it."""
        position = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[slice(*self.rows)]
        epoch, place = np.divmod(position, len(self.source))
        parts = [_order(self.seed, int(e), len(self.source))[place[epoch == e]] for e in np.unique(epoch)]
        index = np.concatenate(parts)
        seed, purpose = np.full_like(index, self.seed), np.full_like(index, Purpose.CROP)
        draw = np.stack([seed, purpose, epoch, index], axis=1)
        return {**self.source.read(index, draw), "index": index.astype(np.int32)}


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """Every example once, in order; the last batch is filled up with masked copies of the first example."""

    source: Source
    batch_size: int
    rows: tuple[int, int | None] = (0, None)  # start, stop

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def batch_at(self, position: int) -> Batch:
        index = np.arange(position * self.batch_size, (position + 1) * self.batch_size)[slice(*self.rows)]
        real = index < len(self.source)
        index = np.where(real, index, 0)
        batch = self.source.read(index, None)
        return {**batch, "mask": batch["mask"] * real.astype(np.int32), "index": index.astype(np.int32)}


def in_parts(batches: TrainBatches | EvalBatches, most: int) -> list[Callable[[int], Batch]]:
    """Functions of the position, up to `most`, whose batches put together are those of `batches.batch_at`.

    So that many workers share a large batch: the first one is ready sooner, and fewer are in memory at a time.
    """
    start, stop, _ = slice(*batches.rows).indices(batches.batch_size)
    count = max(1, min(most, (stop - start) // PART_ROWS))
    edges = [start + (stop - start) * part // count for part in range(count + 1)]
    return [dataclasses.replace(batches, rows=rows).batch_at for rows in itertools.pairwise(edges)]


def join(parts: Sequence[Batch]) -> Batch:
    """Parts of a batch as one."""
    if len(parts) == 1:
        return parts[0]
    columns: Batch = {name: [part[name] for part in parts] for name in parts[0]}
    names = itertools.chain.from_iterable(columns.pop("unreadable"))
    return {name: np.concatenate(column) for name, column in columns.items()} | {"unreadable": [*names]}


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, Purpose.SHUFFLE, epoch]).permutation(size)
