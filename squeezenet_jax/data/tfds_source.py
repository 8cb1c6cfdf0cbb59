"""A split of a tensorflow-datasets data set as encoded images with labels, with no TensorFlow installed.

`tfds.data_source` reads one record per call, and decoding a record with it costs more than a small image; here records
are fetched many at a time, and images are left to `decoding.py`.

Read next: `tfds_builders.py`, which prepares Fashion-MNIST, and `prepare/`, which prepares everything else.
"""

import contextlib
import functools
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format

from squeezenet_jax.data import catalog, tfds_builders
from squeezenet_jax.system import storage
from squeezenet_jax.system.errors import UserError

LABELS_BYTES, LABELS_AT_A_TIME = 2 << 30, 256  # no more than the first epoch reads soon; records


def labels_file(directory: Path, split: str) -> Path:
    """Where `prepare` keeps the labels of a split in the order of its records, int32, beside what TFDS knows of."""
    return directory / f"labels.{split}.npy"


def prepared(name: str, data_dir: str) -> Path:
    """The directory of a dataset that is on disk; `fashion_mnist` is prepared if it is not there yet.

    Raises:
      UserError: it is not there, or whatever `tfds_builders.prepare_fashion_mnist` raises.
    """
    catalog.info(name, data_dir)  # an unknown name is refused as such
    base = storage.cached(data_dir, "data.dir")
    directory = catalog.tfds_directory(name, data_dir)
    if directory is None and name == tfds_builders.FashionMnist.name:
        print(f"preparing {name} in {base} (once)", file=sys.stderr, flush=True)
        with _quiet():
            tfds_builders.prepare_fashion_mnist(base)
        directory = catalog.tfds_directory(name, data_dir)
    if directory is None:
        raise catalog.absent(name, data_dir)
    catalog.fetch_records(directory)
    return directory


class _Unlabelled(UserError):
    pass


class TfdsRecords:
    """The examples `start:stop` of a split in the version directory of a TFDS dataset, array_record.

    Raises:
      UserError: damaged, without labels, or in a format that needs TensorFlow.
    """

    def __init__(self, directory: Path, split: str, start: int, stop: int) -> None:
        self._directory, self._split, self._start, self._stop = directory, split, start, stop
        self._source  # noqa: B018 - what is wrong with it comes up now, not in the middle of a run
        if len(self) and not labels_file(directory, split).exists():
            try:
                self.fetch([0])
            except _Unlabelled:
                raise
            except UserError:
                pass  # whoever reads a damaged record says so

    def __len__(self) -> int:
        return self._stop - self._start

    def fetch(self, index: Sequence[int]) -> list[tuple[bytes, int]]:
        """(encoded image, label) of some."""
        with self._damage():
            examples = self._source.__getitems__(index)
            if any(example["image"] is None or example["label"] is None for example in examples):
                raise ValueError("a record is empty")  # so array_record returns one whose chunk is damaged
            if any(example["label"] < 0 for example in examples):  # as TFDS marks them, in imagenet2012's test split
                raise _Unlabelled(f"{self._directory}: images of {self._split} have no label; choose another split")
            return [(example["image"], int(example["label"])) for example in examples]

    @functools.cached_property
    def labels(self) -> list[int] | None:
        """Labels of all examples; None where only the records have them, and those are more than `LABELS_BYTES`."""
        with contextlib.suppress(OSError, ValueError):  # made by TFDS or an earlier version, or damaged
            stored = np.load(labels_file(self._directory, self._split), allow_pickle=False)[self._start : self._stop]
            if stored.shape == (len(self),) and stored.dtype == np.int32:
                return [int(label) for label in stored]
        found: list[int] = []
        for start in range(0, len(self), LABELS_AT_A_TIME):
            part = self.fetch(range(start, min(start + LABELS_AT_A_TIME, len(self))))
            if not found and sum(len(image) for image, _ in part) / len(part) * len(self) > LABELS_BYTES:
                return None
            found += [label for _, label in part]
        return found

    def name(self, index: int) -> str:
        return f"{self._directory} {self._split}[{self._start + index}]"

    @functools.cached_property
    def _source(self) -> Any:
        with _quiet(), self._damage():
            builder = tfds.builder_from_directory(self._directory)
            try:
                return builder.as_data_source(
                    f"{self._split}[{self._start}:{self._stop}]", decoders={"image": tfds.decode.SkipDecoding()}
                )
            except NotImplementedError as error:
                raise UserError(
                    f"{self._directory}: is {builder.info.file_format.value}, which needs TensorFlow; prepare it as "
                    "array_record in another data.dir"
                ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_source"}  # each process opens its own

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError, LookupError, json_format.ParseError) as error:
            if isinstance(error, UserError):
                raise
            reason = str(error).partition("\n")[0]
            raise UserError(f"{self._directory}: damaged data set ({reason}); delete it and start again") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what TFDS prints and logs; its progress bars only where nobody could see them move."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        tfds.display_progress_bar(enable=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        tfds.display_progress_bar(enable=True)
