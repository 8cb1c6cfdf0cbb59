"""What data a run reads, as a few words that change when the data do, wherever they lie and however that is spelled.

Cheap at ImageNet's size: names, sizes and labels of the images of a folder, and the descriptions and sizes of a
prepared dataset's files; no image is read.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from squeezenet_jax.data import catalog, folder
from squeezenet_jax.settings import DataSettings

DIGITS = 16  # of the SHA-256 that are kept


def fingerprint(data: DataSettings) -> dict[str, str]:
    """By split: "1433 images in 10 classes, 9f86d081884c7d65", of the splits that the run trains on and evaluates.

    Equal for the same files. Raises `UserError` where the data are not there.
    """
    found = catalog.info(data.name, data.dir)
    texts = (getattr(data, field) for field in ("train_split", "eval_split"))
    splits = dict.fromkeys(catalog.parse_split("data", text, data.name, found).name for text in texts)
    return {split: of_split(data.name, data.dir, split) for split in splits}


def of_split(name: str, directory: str, split: str) -> str:
    """The words for one whole split, `train`. Raises `UserError` where it is not there."""
    found = catalog.info(name, directory)
    facts = _facts(name, directory, found, split)
    return f"{found.splits[split]} images in {found.num_classes} classes, {_digest(facts)}"


def surely_differ(name: str, before: str, now: str) -> bool:
    """Whether two fingerprints of a split of the dataset `name` are of other images.

    The same images that were prepared twice can lie in other files, so there numbers of images and classes decide.
    """
    return before != now and (name == catalog.FOLDER or before.partition(",")[0] != now.partition(",")[0])


def trained_on(description: Mapping[str, Any], name: str, directory: str, split: str) -> int:
    """How many images of this split a run was trained on, as far as its run.json says and they are the same images."""
    data, before = description.get("settings", {}).get("data", {}), (description.get("inputs") or {}).get("data", {})
    if data.get("name") != name or not before:
        return 0
    ours = catalog.parse_split("data.eval_split", split, name, catalog.info(name, directory))
    if ours.name not in before:
        return 0
    if surely_differ(name, before[ours.name], of_split(name, directory, ours.name)):
        return 0
    dataset = catalog.DatasetInfo.recorded(description["dataset"])
    return catalog.parse_split("data.train_split", data["train_split"], name, dataset).shared_with(ours)


def _facts(name: str, data_dir: str, found: catalog.DatasetInfo, split: str) -> Iterable[str]:
    if name == catalog.FOLDER:
        scanned = folder.scan(data_dir)
        yield repr(scanned.class_names)
        yield from sorted(f"{item.file_name} {item.label} {item.size}" for item in scanned.splits[split])
        return
    yield repr((name, split, found))
    directory = catalog.tfds_directory(name, data_dir)
    if directory is None and name not in catalog.NOT_TFDS:
        raise catalog.absent(name, data_dir)
    if directory is not None:
        catalog.fetch_records(directory)
        for path in sorted(directory.iterdir()):
            if path.suffix in (".json", ".txt") and path.name != "unreadable.txt":
                yield f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}"
            elif f"-{split}." in path.name:
                yield f"{path.name} {path.stat().st_size}"


def _digest(facts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(fact.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()[:DIGITS]
