"""The images of a SOURCE and their classes, found by what it is: a folder, a tar archive or ImageNet's own archives.

Nothing is unpacked. An image is a range of bytes in a file: the image's own, or the archive's. Names inside an archive
are used as text only, never as paths to write to.

There is one scan of a folder, for training, `evaluate` and `prepare`: every file at any depth in a class's folder is an
image of that class, links are followed wherever they are, and what is left out is named with the reason: what is hidden
(begins with a point), lies in no class folder, is a link to nothing or to a folder above it, or is no file.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from squeezenet_jax.data import archives
from squeezenet_jax.system.errors import UserError

Kind = Literal["folder", "tar", "imagenet"]

# A split's folder -> TFDS's name
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("val", "validation", "valid", "eval"), "validation")
IMAGENET_TRAIN, IMAGENET_VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
ALLOWED = "train/<class>/<image> and test, val, valid, validation or eval/<class>/<image>"


class Item(NamedTuple):
    """An image's name (also the key of the order on disk), its class, and where its bytes are."""

    file_name: str
    label: int
    path: str
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class Collection:
    class_names: tuple[str, ...]
    splits: dict[str, list[Item]]  # each with at least one item
    archives: tuple[str, ...]  # paths that hold many items
    ignored: tuple[str, ...]  # what is left out, one line each: name below the source, and why


@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """A folder of class folders: what `evaluate` takes, and what each split of a `Collection` is."""

    class_names: tuple[str, ...]  # sorted; an item's label is its class's place
    items: tuple[Item, ...]  # class by class
    ignored: tuple[str, ...]


def detect(source: Path) -> Kind:
    """Raises `UserError` where `source` cannot hold images in any known layout."""
    if source.is_dir():
        is_imagenet = any((source / name).is_file() for name in (IMAGENET_TRAIN, IMAGENET_VALIDATION))
        return "imagenet" if is_imagenet else "folder"
    if not source.is_file():
        raise UserError(f"{source}: no such file or folder")
    if source.name in (IMAGENET_TRAIN, IMAGENET_VALIDATION):
        raise UserError(f"{source}: is one of ImageNet's archives; give the folder that holds it, {source.parent}")
    archives.check(source)
    return "tar"


def default_name(source: Path, kind: Kind) -> str:
    """The source's name as TFDS writes names: `Cifar10-JPEG.tar.xz` -> `cifar10_jpeg`. May be no valid name at all."""
    if kind == "imagenet":
        return "imagenet2012"
    name = source.resolve().name
    if kind == "tar":
        name = re.sub(r"(\.tar(\.\w+)?|\.t\w?z2?)$", "", name, flags=re.IGNORECASE)
    words = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", name)  # MyFlowers -> My_Flowers
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")


def collect(source: Path, kind: Kind, tar: Path) -> Collection:
    """All images; `tar` is the uncompressed archive where `source` is one.

    Raises:
      UserError: unreadable or damaged, no images, no split folders, or a class that train lacks.
    """
    try:
        if kind == "imagenet":
            return _imagenet(source)
        found = _in_folder(source) if kind == "folder" else _in_tar(tar)
        return found.collection(source, (str(tar),) if kind == "tar" else ())
    except OSError as error:
        raise UserError(f"{error.filename or source}: cannot be read ({error.strerror or error})") from error


def class_folders(folder: Path) -> ClassFolders:
    """The images below a folder of class folders. Raises `UserError` where it cannot be read or is no such folder."""
    found = _Found()
    try:
        for name, what in _entries(str(folder)):
            found.add("", name, what)
    except OSError as error:
        raise UserError(f"{archives.printable(str(error.filename))}: cannot be read ({error.strerror})") from error
    names = sorted(found.classes.get("", ()))
    label_of = {name: label for label, name in enumerate(names)}
    files = found.files.get("", {})
    items = (Item(_text(name), label_of[name.partition("/")[0]], *files[name]) for name in sorted(files))
    return ClassFolders(tuple(map(_text, names)), tuple(items), tuple(sorted(found.ignored)))


def files_below(folder: Path) -> list[Path]:
    """Every file at any depth below a folder but hidden ones, links followed, sorted."""
    return sorted(Path(what[0]) for _, what in _entries(str(folder)) if isinstance(what, tuple))


def in_order(split: str, items: Iterable[Item]) -> list[Item]:
    """TFDS's own shuffle, by a hash of split and name: any range of the data set is a random part of each class."""
    from tensorflow_datasets.core import hashing  # a second, which planning need not wait for

    hasher = hashing.Hasher(split)
    return sorted(items, key=lambda item: (hasher.hash_key(item.file_name), item))


Place = tuple[str, int, int]  # path, offset, size
FOLDER, HIDDEN = "folder", "hidden"
OTHER = "no file, but a link to none in the archive, a device or a sparse file"


class _Found:
    """Class folders and the files in them, split by split."""

    def __init__(self) -> None:
        self.classes: dict[str, set[str]] = {}  # by the split folder's name
        self.files: dict[str, dict[str, Place]] = {}  # name below the split folder -> where it is
        self.ignored: list[str] = []

    def add(self, split: str, below: Sequence[str], what: Place | str) -> None:
        """Adds a file, a folder (`what` is `FOLDER`), or what is neither, `what` being the reason."""
        files, classes = self.files.setdefault(split, {}), self.classes.setdefault(split, set())
        if any(part.startswith(".") for part in below):
            if what != FOLDER:
                self.leave_out([split, *below], HIDDEN)
        elif what == FOLDER:
            classes.update(below[:1])
        elif isinstance(what, str):
            self.leave_out([split, *below], what)
        elif len(below) < 2:
            self.leave_out([split, *below], "in no class folder")
        else:
            classes.add(below[0])
            files["/".join(below)] = what  # the same name again, appended to an archive, replaces the first

    def leave_out(self, parts: Sequence[str], reason: str) -> None:
        self.ignored.append(f"{archives.printable('/'.join(part for part in parts if part))}: {reason}")

    def collection(self, source: Path, archive_paths: tuple[str, ...]) -> Collection:
        folders = [name for name in SPLITS if name in self.classes]
        if not folders:
            raise UserError(f"{source}: has no split folders; allowed: {ALLOWED}")
        for first, second in itertools.combinations(folders, 2):
            if SPLITS[first] == SPLITS[second]:
                raise UserError(f"{source}: has both {first} and {second}; they are one split")
        class_names = sorted(self.classes.get("train") or set().union(*self.classes.values()))
        for name in class_names:
            _check_class_name(source, name)
        label_of = {name: label for label, name in enumerate(class_names)}
        for folder in folders:
            unknown = sorted(self.classes[folder] - set(class_names))
            if unknown:
                raise UserError(
                    f"{source}: {folder} has {len(unknown)} class folder(s) that train lacks, the first "
                    f'"{archives.printable(unknown[0])}"; every class needs a folder in train, if an empty one'
                )
        splits = {
            SPLITS[folder]: [
                Item(_text(name), label_of[name.partition("/")[0]], *place)
                for name, place in self.files[folder].items()
            ]
            for folder in folders
            if self.files[folder]
        }
        if not splits:
            raise UserError(f"{source}: has no files in its class folders; allowed: {ALLOWED}")
        return Collection(tuple(map(_text, class_names)), splits, archive_paths, tuple(sorted(self.ignored)))


def _in_folder(source: Path) -> _Found:
    found = _Found()
    for entry in os.scandir(source):
        if not _is(entry.is_dir):
            continue
        if entry.name in SPLITS:
            found.add(entry.name, [], FOLDER)
            for name, what in _entries(entry.path):
                found.add(entry.name, name, what)
        else:
            found.leave_out([entry.name], HIDDEN if entry.name.startswith(".") else "a folder that is no split")
    return found


def _entries(
    folder: str, within: tuple[str, ...] = (), above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[tuple[str, ...], Place | str]]:
    """(name, its parts; what it is, for `_Found.add`) of everything below a folder. `above`: folders that hold it."""
    status = os.stat(folder)
    above |= {(status.st_dev, status.st_ino)}
    for entry in os.scandir(folder):
        name = (*within, entry.name)
        if entry.name.startswith("."):
            yield name, HIDDEN
        elif _is(entry.is_dir):
            status = entry.stat()
            if (status.st_dev, status.st_ino) in above:
                yield name, "a link to a folder that holds it"
            else:
                yield name, FOLDER
                yield from _entries(entry.path, name, above)
        elif _is(entry.is_file):
            yield name, (entry.path, 0, _size(entry.path))
        else:
            yield name, "a link to nothing" if entry.is_symlink() else "no file, but a pipe or a device"


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself, or into a folder that is locked away
        return False


def _in_tar(tar: Path) -> _Found:
    """As in a folder; the split folders may lie inside one folder of any name."""
    found = _Found()
    tops: set[str] = set()
    for name, extent in archives.members(tar):
        parts = [part for part in name.split("/") if part not in ("", ".")]
        depth = next((depth for depth, part in enumerate(parts[:2]) if part in SPLITS), None)
        if depth is None:
            continue
        tops.add("/".join(parts[:depth]))
        what = (str(tar), *extent) if isinstance(extent, tuple) else FOLDER if extent == "folder" else OTHER
        found.add(parts[depth], parts[depth + 1 :], what)
    if len(tops) > 1:
        first, second = (archives.printable(top) or "." for top in sorted(tops)[:2])
        raise UserError(f"{tar}: has split folders in more than one place, {first} and {second}")
    return found


def _imagenet(source: Path) -> Collection:
    """ImageNet's archives as its makers publish them; classes, labels and keys as TFDS's imagenet2012 has them."""
    import tensorflow_datasets as tfds  # a second, which planning with a folder need not wait for

    folder = Path(tfds.core.tfds_path("datasets/imagenet2012"))
    class_names = (folder / "labels.txt").read_text().split()
    validation_labels = (folder / "validation_labels.txt").read_text().split()  # by the number in the file's name
    label_of = {name: label for label, name in enumerate(class_names)}
    paths = [path for path in (source / IMAGENET_TRAIN, source / IMAGENET_VALIDATION) if path.is_file()]
    splits: dict[str, list[Item]] = {}
    ignored = []
    for path in paths:
        items = splits[_imagenet_split(path)] = []
        for wnid, name, extent in _imagenet_members(path):
            number = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
            if wnid is None and number and 1 <= int(number[1]) <= len(validation_labels):
                wnid = validation_labels[int(number[1]) - 1]
            if extent == "folder":
                continue
            if wnid is None or isinstance(extent, str):
                ignored.append(f"{archives.printable(name)}: {OTHER if extent == 'other' else 'no image of ImageNet'}")
            elif wnid not in label_of:
                raise UserError(f'{path}: holds "{archives.printable(wnid)}.tar", which is no class of ImageNet 2012')
            else:
                items.append(Item(_text(name), label_of[wnid], str(path), *extent))
        if not items:
            raise UserError(f"{path}: holds no images in the layout of ImageNet's own archive of that name")
    return Collection(tuple(class_names), splits, tuple(map(str, paths)), tuple(ignored))


def _imagenet_split(path: Path) -> str:
    return "train" if path.name == IMAGENET_TRAIN else "validation"


def _imagenet_members(path: Path) -> Iterator[tuple[str | None, str, archives.Extent]]:
    """(class or None, name, extent) of each image: train is a tar of one tar per class, validation is flat."""
    if path.name == IMAGENET_VALIDATION:
        for name, extent in archives.members(path):
            yield None, name.rpartition("/")[2], extent
        return
    for name, extent in archives.members(path):
        if name.endswith(".tar") and not isinstance(extent, str):
            wnid = name.rpartition("/")[2].removesuffix(".tar")
            for inner, inner_extent in archives.members(path, extent):
                yield wnid, inner.rpartition("/")[2], inner_extent
        else:
            yield None, name, extent


def _check_class_name(source: Path, name: str) -> None:
    # TFDS keeps names one a line and strips them.
    if name != name.strip() or archives.printable(_text(name)) != _text(name):
        raise UserError(
            f'{source}: the class folder "{archives.printable(name)}" cannot be the name of a class in TFDS: it begins '
            "or ends with a space, or has a character that cannot be printed; rename it"
        )


def _text(name: str) -> str:
    """A name that may hold bytes that are no UTF-8 (as surrogates), as text that does not."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # gone since; it will be reported among the unreadable
        return 0
