"""evaluate WEIGHTS folder:DIR: top-1 and top-5 on a folder of one folder per class. Letters: B batch, K classes.

Folders are classes by the rule of `weights/classes.py`. Images are decoded as in training, and turned by their EXIF
orientation only if the network's training did so.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from squeezenet_jax.commands import arguments
from squeezenet_jax.system.errors import UserError

if TYPE_CHECKING:
    from squeezenet_jax.data.layouts import ClassFolders
    from squeezenet_jax.weights import Weights, classes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help="any file or run that `convert` reads")
    parser.add_argument("data", metavar="folder:DIR", help="a folder per class, named as in WEIGHTS, or 0 to K-1")
    parser.add_argument("--batch-size", type=int, default=16, help="images at a time (default: %(default)s)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    arguments.add_position_option(parser, "take the folders as classes in sorted order, whatever they are called")
    arguments.add_reading_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.batch_size < 1:
        raise UserError(f"--batch-size: {args.batch_size} is not allowed; it must be at least 1")
    kind, _, folder = args.data.partition(":")
    if kind != "folder" or not folder:
        raise UserError(f"{args.data}: is not known; evaluation data are given as folder:DIR")
    loaded = arguments.load_weights(args.weights, args)
    found, matched = scan(arguments.path_of(folder), loaded, by_position=args.classes_by_position)
    label_of = {Path(item.path): matched.numbers[item.label] for item in found.items}
    if matched.note:
        print(f"note: {matched.note}", file=sys.stderr)
    result, unreadable = evaluate(loaded, label_of, args.batch_size)
    if args.format == "json":
        named = {"unreadable": unreadable, "ignored": found.ignored}
        print(json.dumps({**result, "classes_by": matched.how, **named}, indent=2))
        return 0
    print(f"top-1 {100 * result['top1']:.2f} %, top-5 {100 * result['top5']:.2f} % of {result['count']} images")
    for message in (*unreadable, *found.ignored):
        print(f"left out: {message}", file=sys.stderr)
    if left_out := len(unreadable) + len(found.ignored):
        print(f"left out in all: {left_out:,}", file=sys.stderr)
    return 0


def scan(folder: Path, weights: "Weights", *, by_position: bool) -> "tuple[ClassFolders, classes.Matched]":
    """The images of DIR, listed as training lists a split's, and which class of the network each folder is."""
    from squeezenet_jax.data import archives, layouts
    from squeezenet_jax.weights import classes

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
    return found, matched


def evaluate(weights: "Weights", label_of: dict[Path, int], batch_size: int) -> tuple[dict[str, float], list[str]]:
    """({"top1", "top5": fractions, "count"}, one line per unreadable file). Every readable file counts once."""
    import jax.numpy as jnp
    import numpy as np

    from squeezenet_jax.training import objective
    from squeezenet_jax.weights.images import read_image
    from squeezenet_jax.weights.inference import batched, compile_forward

    unreadable: list[str] = []

    def read(path: Path) -> np.ndarray | None:
        try:
            return read_image(path, weights.preprocessing)
        except UserError as error:
            unreadable.append(str(error))
            return None

    size = min(batch_size, len(label_of))
    forward = compile_forward(weights, size, len(label_of))
    ranks = [
        np.asarray(
            objective.label_rank(jnp.asarray(forward(image_BHWC)), jnp.array([label_of[path] for path in paths]))
        )
        for paths, image_BHWC in batched(label_of, read, size)
    ]
    if not ranks:
        raise UserError(f"none of the {len(label_of)} files could be read as an image; the first: {unreadable[0]}")
    rank = np.concatenate(ranks)
    return {"top1": float(np.mean(rank < 1)), "top5": float(np.mean(rank < 5)), "count": len(rank)}, unreadable
