"""What TFDS reads beside the shards: features.json, dataset_info.json and the names of the classes."""

import dataclasses
import itertools
import os
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info, file_adapters, naming
from tensorflow_datasets.core import splits as tfds_splits

FORMAT = file_adapters.FileFormat.ARRAY_RECORD


@dataclasses.dataclass(frozen=True)
class Summary:
    """What is known of a finished shard."""

    examples: int
    example_bytes: int
    file_bytes: int
    sizes: list[list[int]]  # distinct [H, W]; two stand for any larger number
    channels: list[int]  # distinct
    unreadable: list[list[str]]  # name, reason


def features(shape: tuple[int | None, int | None, int], class_names: list[str]) -> Any:
    """The features that TFDS's imagenet2012 has."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(names=class_names),
            "file_name": tfds.features.Text(),
        }
    )


def write(
    data: Path, name: str, version: str, description: str, class_names: list[str], by_split: dict[str, list[Summary]]
) -> None:
    """Makes the shards in `data`, whose summaries are given in order, a TFDS data set."""
    template = naming.ShardedFileTemplate(data_dir=data, dataset_name=name, filetype_suffix=FORMAT.file_suffix)
    info = dataset_info.DatasetInfo(
        builder=dataset_info.DatasetIdentity(name, tfds.core.Version(version), os.fspath(data), module_name=""),
        description=description,
        features=features(_shape([*itertools.chain(*by_split.values())]), class_names),
        supervised_keys=("image", "label"),
    )
    info.set_file_format(FORMAT)
    split_infos = [
        tfds_splits.SplitInfo(
            name=split,
            shard_lengths=[summary.examples for summary in summaries],
            num_bytes=sum(summary.example_bytes for summary in summaries),
            filename_template=template.replace(split=split),
        )
        for split, summaries in by_split.items()
    ]
    info.set_splits(tfds_splits.SplitDict(split_infos))
    info.write_to_directory(data)


def _shape(summaries: list[Summary]) -> tuple[int | None, int | None, int]:
    """Of every image, as far as they have one; grey images are read as RGB where others, or other sizes, are."""
    sizes = {(height, width) for summary in summaries for height, width in summary.sizes}
    if len(sizes) > 1:
        return None, None, 3
    ((height, width),) = sizes
    return height, width, max(channels for summary in summaries for channels in summary.channels)
