"""What a dataset holds, and whether a config fits it: known names, TFDS directories, folders. No jax."""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from squeezenet_jax.data import folder, layouts
from squeezenet_jax.settings import DataSettings
from squeezenet_jax.system import storage
from squeezenet_jax.system.errors import UserError, unknown

FOLDER = "folder"  # the data.name of images in class folders below data.dir
NOT_TFDS = ("digits", FOLDER)  # read without tensorflow-datasets: none of its datasets can be reached by these names
UNKNOWN = -1  # a size in TFDS's features.json that is not the same for all images


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    splits: Mapping[str, int]  # examples in each
    num_classes: int
    channels: int
    class_names: tuple[str, ...] = ()  # in the order of the labels; empty where they are not known

    @classmethod
    def recorded(cls, about: Mapping[str, Any]) -> "DatasetInfo":
        """As a run's description has it, without the names."""
        return cls(about["splits"], about["num_classes"], about["channels"])


DATASETS = {
    # Alpaydin & Kaynak, the test half of UCI "optdigits"; scikit-learn ships all 1,797. Split in `sources.py`.
    "digits": DatasetInfo({"train": 1433, "test": 364}, num_classes=10, channels=1),
    # Xiao et al., arXiv 1708.07747. Prepared when it is first read.
    "fashion_mnist": DatasetInfo({"train": 60_000, "test": 10_000}, num_classes=10, channels=1),
    # These can be planned with before they are there; `python -m squeezenet_jax prepare` makes them.
    "cifar10": DatasetInfo({"train": 50_000, "test": 10_000}, num_classes=10, channels=3),  # Krizhevsky 2009
    "imagenette": DatasetInfo({"train": 9_469, "validation": 3_925}, num_classes=10, channels=3),  # fast.ai, v2
    "imagenet2012": DatasetInfo({"train": 1_281_167, "validation": 50_000}, num_classes=1000, channels=3),
}


@dataclasses.dataclass(frozen=True)
class Split:
    """A part `start:stop` of a named split."""

    name: str
    start: int
    stop: int

    def shared_with(self, other: "Split") -> int:
        """How many images both have."""
        return max(0, min(self.stop, other.stop) - max(self.start, other.start)) if self.name == other.name else 0


def info(name: str, data_dir: str) -> DatasetInfo:
    """What `name` holds: read from `data_dir` where it is there, else what is known of it."""
    if name == FOLDER:
        found = folder.scan(data_dir)
        sizes = {split: len(items) for split, items in found.splits.items()}
        return DatasetInfo(sizes, len(found.class_names), 3, found.class_names)
    directory = tfds_directory(name, data_dir)
    if directory is not None:
        return _tfds_info(directory)
    if name not in DATASETS:
        raise unknown("data.name", name, dict.fromkeys([*DATASETS, FOLDER, *_tfds_names(data_dir)]))
    return DATASETS[name]


def tfds_directory(name: str, data_dir: str) -> Path | None:
    """The newest version of a dataset (`name`, or `name/config`) below TFDS's directory; None where there is none."""
    if name in NOT_TFDS:
        return None
    base = _local(data_dir)
    storage.fetch_once(base / name, _describes)
    versions = (base / name).glob("*.*.*/features.json")
    by_number = {version(path.parent): path.parent for path in versions if _is_version(path)}
    return by_number[max(by_number)] if by_number else None


def version(directory: Path) -> tuple[int, ...]:
    """That which a version's directory is named after, 1.10.0, so that it can be compared."""
    return tuple(map(int, directory.name.split(".")))


def absent(name: str, data_dir: str) -> UserError:
    """For a known dataset that is not on this disk."""
    base = _local(data_dir)
    return UserError(
        f"data.dir: {base} has no {name}; prepare it there: python -m squeezenet_jax prepare SOURCE --name {name} "
        f"--out {base}"
    )


def fetch_records(directory: Path) -> None:
    """Brings what a version in a bucket holds beside its description, once a process; it stays on this disk."""
    storage.fetch_once(directory)


def _local(data_dir: str) -> Path:
    return storage.cached(data_dir, "data.dir")


def _describes(key: str) -> bool:
    return key.endswith((".json", ".txt"))


def _is_version(features: Path) -> bool:
    return re.fullmatch(r"\d+\.\d+\.\d+", features.parent.name) is not None


def _tfds_names(data_dir: str) -> list[str]:
    base = _local(data_dir)
    found = [*base.glob("*/*.*.*/features.json"), *base.glob("*/*/*.*.*/features.json")]
    return sorted({str(path.parents[1].relative_to(base)) for path in found})


def _tfds_info(directory: Path) -> DatasetInfo:
    try:
        splits = json.loads((directory / "dataset_info.json").read_text())["splits"]
        features: dict[str, Any] = json.loads((directory / "features.json").read_text())["featuresDict"]["features"]
        if missing := {"image", "label"} - set(features):
            has = ", ".join(features)
            raise UserError(f'{directory}: has no feature "{", ".join(sorted(missing))}"; it has {has}')
        if "classLabel" not in features["label"] or "image" not in features["image"]:
            raise UserError(
                f"{directory}: features image and label must be an Image and a ClassLabel, one for each image"
            )
        sizes = {split["name"]: sum(map(int, split["shardLengths"])) for split in splits}
        channels = int(features["image"]["image"]["shape"]["dimensions"][-1])
        channels = 3 if channels == UNKNOWN else channels  # as which any image can be read
        num_classes, names = int(features["label"]["classLabel"]["numClasses"]), directory / "label.labels.txt"
        class_names = tuple(names.read_text(encoding="utf-8").removesuffix("\n").split("\n")) if names.is_file() else ()
        return DatasetInfo(sizes, num_classes, channels, class_names if len(class_names) == num_classes else ())
    except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{directory}: damaged data set ({error!r}); delete it and start again") from error


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """A flat config with what it leaves to the dataset: `data.num_classes` 0 and `data.eval_split` "" are filled in."""
    filled = dict(config)
    if not config["data.num_classes"] or not config["data.eval_split"]:
        found = info(config["data.name"], config["data.dir"])
        filled["data.num_classes"] = config["data.num_classes"] or found.num_classes
        held_out = [split for split in ("test", "validation") if split in found.splits]
        filled["data.eval_split"] = config["data.eval_split"] or next(iter(held_out), "test")
    return filled


def check(data: DataSettings) -> None:
    """Raises `UserError` where name, splits, classes, channels or crops do not fit the dataset."""
    found = info(data.name, data.dir)
    if data.name == "digits" and data.crop != "whole":
        raise UserError(f"data.crop: {data.crop} is not possible on digits, of 8 x 8 px; it must be whole")
    allowed = {"num_classes": (found.num_classes,), "channels": (1, 3)}
    for field, values in allowed.items():
        if getattr(data, field) not in values:
            expected = " or ".join(map(str, values))
            raise UserError(f"data.{field}: {getattr(data, field)} does not match {data.name}; it must be {expected}")
    train, held_out = (
        parse_split(f"data.{field}", getattr(data, field), data.name, found) for field in ("train_split", "eval_split")
    )
    shared = train.shared_with(held_out)
    if data.name == FOLDER and train.name != held_out.name:
        shared = folder.linked(data.dir, held_out.name, train.name)
    check_shared(data, shared, f"data.train_split, which is {data.train_split}")


def check_shared(data: DataSettings, shared: int, what: str) -> None:
    """Raises `UserError` where images to evaluate on are also in what was trained on, unless that is allowed."""
    if shared and not data.allow_overlap:
        count = f"{shared:,} image{'s' if shared > 1 else ''}"
        raise UserError(
            f"data.eval_split: {data.eval_split} shares {count} with {what}; accuracy on them says nothing "
            "(data.allow_overlap=True evaluates them all the same)"
        )


def count(data: DataSettings, field: str) -> int:
    """How many images the split has that `data.<field>` names (`train_split` or `eval_split`)."""
    split = parse_split(f"data.{field}", getattr(data, field), data.name, info(data.name, data.dir))
    return split.stop - split.start


def parse_split(field: str, text: str, dataset: str, found: DatasetInfo) -> Split:
    """Reads a part as TFDS writes it: `train`, `train[:80%]`, `train[-100:]`; percentages round to nearest."""
    match = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", text)
    if not match and text.partition("[")[0].partition("+")[0].strip() in found.splits:
        raise UserError(
            f"{field}: {text} is not possible; allowed: {', '.join(found.splits)}, or one part of one of them, in "
            "whole numbers: train[:80%], train[80%:], train[100:200], train[-100:]"
        )
    name = match[1] if match else text
    if name not in found.splits:  # val, which is a folder's name, for validation
        name = layouts.SPLITS.get(name, name)
    if not match or name not in found.splits:
        # Nobody who asks for another split to evaluate on means the images that are trained on.
        likely = [split for split in found.splits if field != "data.eval_split" or split != "train"]
        near = difflib.get_close_matches(text, likely, n=1, cutoff=0.4)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        if not likely:
            where = ", in a folder test, val, valid or eval" if dataset == FOLDER else ""
            hint = f"; {dataset} has no images that are held out{where}"
        raise UserError(f'{field}: unknown value "{text}"; allowed: {", ".join(found.splits)}{hint}')
    size = found.splits[name]

    def position(bound: str | None, default: int) -> int:
        if bound is None:
            return default
        place = round(int(bound[:-1]) * size / 100) if bound.endswith("%") else int(bound)
        return size + place if bound.startswith("-") else place  # counted from the end

    split = Split(name, position(match[2], 0), position(match[3], size))
    if not 0 <= split.start < split.stop <= size:
        raise UserError(f"{field}: {text} is examples {split.start}:{split.stop}; {name} of {dataset} has 0:{size}")
    return split
