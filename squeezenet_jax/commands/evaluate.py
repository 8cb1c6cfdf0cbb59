"""evaluate WEIGHTS [DATA]: exact loss, top-1 and top-5 of a network on images with known classes.

DATA is `folder:DIR`, a folder of one folder per class; `NAME` or `NAME:DIR`, a dataset as `data.name` and `data.dir`
have it; or nothing, for a run: the images that it was evaluated on. Which class is which, `weights/classes.py` says.
Images are turned by their EXIF orientation only if the network's training did so. Letters: N images, K classes.
"""

import argparse
import collections
import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from squeezenet_jax.commands import arguments
from squeezenet_jax.system import cores, storage
from squeezenet_jax.system.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from squeezenet_jax.weights import Weights
    from squeezenet_jax.weights.classes import Matched
    from squeezenet_jax.weights.classify import Compile

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help="any file, run or name that `convert` reads")
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        help="folder:DIR, a folder per class, each named after its class; or a dataset, NAME or NAME:DIR, as data.name "
        "and data.dir have it (default: what the run in WEIGHTS was evaluated on)",
    )
    parser.add_argument("--split", help="of a dataset: test[:100], say (default: test, or validation)")
    parser.add_argument("--batch-size", type=int, default=16, help="images at a time (default: %(default)s)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    arguments.add_position_option(parser, "take the data's classes in their order, whatever they are called")
    arguments.add_engine_option(parser)
    arguments.add_reading_options(parser)
    parser.set_defaults(run=run)


class Examples(NamedTuple):
    """N images with their classes in the network's numbers."""

    size: int  # N
    # number -> (float32 [H, W, C], normalised; class); `UserError` where the image cannot be read
    read: "Callable[[int], tuple[np.ndarray, int]]"
    matched: "Matched"
    ignored: Sequence[str] = ()  # files that are no images by their place, with reasons
    split: str = ""  # of a dataset


def run(args: argparse.Namespace) -> int:
    if args.batch_size < 1:
        raise UserError(f"--batch-size: {args.batch_size} is not allowed; it must be at least 1")
    compile_forward = arguments.compile_forward(args)
    loaded = arguments.load_weights(args.weights, args)
    examples = _examples(args, loaded)
    from squeezenet_jax.weights.formats.run_directory import DTYPE

    if dtype := loaded.provenance.get(DTYPE):
        said = "its own accuracy may be another by some images"
        print(f"note: {args.weights} was trained and evaluated in {dtype}, this is float32: {said}", file=sys.stderr)
    if examples.matched.note:
        print(f"note: {examples.matched.note}", file=sys.stderr)
    result, unreadable = evaluate(loaded, examples, args.batch_size, compile_forward)
    if args.format == "json":
        named = {"engine": args.engine, "unreadable": unreadable, "ignored": list(examples.ignored)}
        print(json.dumps({**result, "classes_by": examples.matched.how, **named}, indent=2))
        return 0
    top5 = "–" if result["top5"] is None else f"{100 * result['top5']:.2f} %"
    print(f"top-1 {100 * result['top1']:.2f} %, top-5 {top5} of {result['count']} images")
    for message in (*unreadable, *examples.ignored):
        print(f"left out: {storage.named(message)}", file=sys.stderr)
    if left_out := len(unreadable) + len(examples.ignored):
        print(f"left out in all: {left_out:,}", file=sys.stderr)
    return 0


def _examples(args: argparse.Namespace, weights: "Weights") -> Examples:
    from squeezenet_jax.data import layouts

    kind, _, place = (args.data or "").partition(":")
    if kind == "folder":
        if args.split:
            raise UserError("--split: is for datasets; of a folder, give that of the split, folder:DIR/test")
        if not place:
            raise UserError(f"{args.data}: names no folder; it must be folder:DIR")
        folder = arguments.path_of(place)
        examples = of_folder(folder, weights, by_position=args.classes_by_position)
        if not storage.is_remote(folder):  # whose neighbours would be fetched for it
            _note_trained_on(args.weights, "folder", str(folder.parent), layouts.SPLITS.get(folder.name, ""))
        return examples
    if args.data:
        place = place or "~/tensorflow_datasets"
        examples = of_dataset(kind, place, args.split or "", weights, by_position=args.classes_by_position)
        _note_trained_on(args.weights, kind, place, examples.split)
        return examples
    from squeezenet_jax.runs.directory import RunDirectory

    path = arguments.path_of(args.weights)
    description = RunDirectory(path).read_description() if path.is_dir() else {}
    data = description.get("settings", {}).get("data")
    if not isinstance(data, dict) or not {"name", "dir", "eval_split"} <= data.keys():
        raise UserError("DATA: is missing; only a run's directory says what it was evaluated on")
    name, directory, split = str(data["name"]), str(data["dir"]), args.split or str(data["eval_split"])
    examples = of_dataset(name, directory, split, weights, by_position=args.classes_by_position)
    _compare((description.get("inputs") or {}).get("data") or {}, name, directory, split)
    _note_trained_on(args.weights, name, directory, examples.split)
    return examples


def _note_trained_on(origin: str, name: str, directory: str, split: str) -> None:
    """Says on how many images of this split of these data the run `origin`, or one that it began with, was trained."""
    from squeezenet_jax.data import fingerprint
    from squeezenet_jax.weights import transfer

    for place, description in transfer.lineage(arguments.path_of(origin)) if split else ():
        seen = 0
        with contextlib.suppress(UserError):  # what lies beside a folder need not be what a run was trained on
            seen = fingerprint.trained_on(description, name, directory, split)
        if seen:
            who = f"{place}, with which it began," if place else "the run"
            said = "its accuracy on them says nothing about others"
            print(f"note: {who} was trained on {seen:,} of these images: {said}", file=sys.stderr)


def _compare(recorded: Mapping[str, str], name: str, directory: str, split: str) -> None:
    """Raises `UserError` where a run's data are other images than it was begun with, as far as it recorded them."""
    from squeezenet_jax.data import catalog, fingerprint

    whole = catalog.parse_split("--split", split, name, catalog.info(name, directory)).name
    if whole not in recorded:
        return
    before, now = recorded[whole], fingerprint.of_split(name, directory, whole)
    if fingerprint.surely_differ(name, before, now):
        raise UserError(
            f"DATA: the run was begun with other images: {whole} was {before}, now it is {now}; "
            "say which to evaluate on"
        )
    if before != now:
        print(f"note: {whole} was {before} when the run began, now it is {now}: prepared again?", file=sys.stderr)


def of_folder(folder: Path, weights: "Weights", *, by_position: bool) -> Examples:
    """The images of a folder of class folders, listed as training lists a split's."""
    from squeezenet_jax.data import archives, layouts
    from squeezenet_jax.weights import classes
    from squeezenet_jax.weights.images import read_image

    try:
        found = layouts.class_folders(folder)
    except UserError as error:
        raise UserError(f"folder:{error}") from None
    where = f"folder:{archives.printable(str(folder))}"
    try:
        matched = classes.match(weights.labels, weights.num_classes, found.class_names, by_position=by_position)
    except UserError as error:
        splits = [name for name in found.class_names if name in layouts.SPLITS]
        hint = f"; {splits[0]} may be a split: folder:DIR/{splits[0]}" if splits else ""
        raise UserError(f"{where}: {error}{hint}") from None
    if not found.items:
        raise UserError(f"{where}: has no files in its class folders")

    def read(number: int) -> "tuple[np.ndarray, int]":
        item = found.items[number]
        return read_image(Path(item.path), weights.preprocessing), matched.numbers[item.label]

    return Examples(len(found.items), read, matched, found.ignored)


def of_dataset(name: str, directory: str, split: str, weights: "Weights", *, by_position: bool) -> Examples:
    """The images of a dataset's split; "" is its test split, or its validation split."""
    import numpy as np
    from PIL import Image

    from squeezenet_jax.data import catalog, sources
    from squeezenet_jax.data.images.decoding import Undecodable, as_mode
    from squeezenet_jax.settings import DataSettings
    from squeezenet_jax.weights import classes
    from squeezenet_jax.weights.images import decode_image, preprocess

    wanted = {"data.name": name, "data.dir": directory, "data.num_classes": 0, "data.eval_split": split}
    resolved = catalog.resolve(wanted)
    found = catalog.info(name, directory)
    try:
        names = found.class_names or tuple(map(str, range(found.num_classes)))
        matched = classes.match(weights.labels, weights.num_classes, names, by_position=by_position)
    except UserError as error:
        if found.class_names or found.num_classes != weights.num_classes:
            raise UserError(f"{name}: {error}") from None
        note = f"{name} does not name its classes: they go by position"
        matched = classes.Matched(tuple(range(weights.num_classes)), "position", note)
    in_memory = name == "digits"
    data = DataSettings(  # as the files have them; what the network sees of them is the preprocessing's to say
        name=name,
        dir=directory,
        eval_split=resolved["data.eval_split"],
        num_classes=found.num_classes,
        channels=found.channels,
        image_size=8 if in_memory else 1,
        crop="whole" if in_memory else "random_resized",
    )
    source = sources.load(data, "eval_split")
    if isinstance(source, sources.InMemory):
        image_NHWC, label_N = source.image, source.label

        def read(number: int) -> tuple[np.ndarray, int]:
            picture = as_mode(Image.fromarray(image_NHWC[number, ..., 0]), weights.channels)
            return preprocess(picture, weights.preprocessing), matched.numbers[label_N[number]]

    else:
        assert isinstance(source, sources.Encoded)
        records = source.records

        def read(number: int) -> tuple[np.ndarray, int]:
            ((content, label),) = records.fetch([number])
            if isinstance(content, Undecodable):
                raise UserError(f"{records.name(number)}: {content}")
            return decode_image(content, records.name(number), weights.preprocessing), matched.numbers[label]

    return Examples(len(source), read, matched, split=data.eval_split)


def evaluate(
    weights: "Weights", examples: Examples, batch_size: int, compile_forward: "Compile"
) -> tuple[dict[str, Any], list[str]]:
    """({"loss", "top1", "top5", "count"}, one line per unreadable image). Every readable image counts once.

    Accuracies are fractions; top-5 of five or fewer classes says nothing, and is None.
    """
    import numpy as np

    from squeezenet_jax.weights.images import in_batches
    from squeezenet_jax.weights.scores import Scores

    unreadable: list[str] = []
    scores, size = Scores(), min(batch_size, examples.size)
    forward = compile_forward(weights, size, examples.size)
    with _in_threads(examples.read, examples.size, ahead=size + cores.cores()) as readings:
        for batch in in_batches(readings, size, lambda number, error: unreadable.append(str(error))):
            images, labels = zip(*batch, strict=True)
            scores.add(forward(np.stack(images)), np.array(labels))
    if not scores.count:
        raise UserError(f"none of the {examples.size} files could be read as an image; the first: {unreadable[0]}")
    return scores.means() | ({"top5": None} if weights.num_classes <= 5 else {}), unreadable


@contextlib.contextmanager
def _in_threads(read: "Callable[[int], T]", count: int, *, ahead: int) -> "Iterator[Iterator[Callable[[], T]]]":
    """What waits for `read(0)`, `read(1)`, ... and gives it; threads are about so many `ahead` of the one in use."""
    pool, futures = ThreadPoolExecutor(cores.cores(), "images"), collections.deque[Future[T]]()

    def readings() -> "Iterator[Callable[[], T]]":
        for number in range(count + ahead):
            if number < count:
                futures.append(pool.submit(read, number))
            if number >= ahead and futures:
                yield futures.popleft().result

    try:
        with warnings.catch_warnings():  # once, for all threads have the same filters
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield readings()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a disk may hang
