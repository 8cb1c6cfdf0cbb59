"""evaluate WEIGHTS folder:DIR: top-1 and top-5 on a folder of one folder per class. Letters: B batch, K classes."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from squeezenet_jax.commands import arguments
from squeezenet_jax.system.errors import UserError

if TYPE_CHECKING:
    from squeezenet_jax.data.layouts import ClassFolders, Item
    from squeezenet_jax.weights import Weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help="any file or run that `convert` reads")
    parser.add_argument("data", metavar="folder:DIR", help="a folder per class; sorted, their names are the classes")
    parser.add_argument("--batch-size", type=int, default=16, help="images at a time (default: %(default)s)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    arguments.add_reading_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.batch_size < 1:
        raise UserError(f"--batch-size: {args.batch_size} is not allowed; it must be at least 1")
    kind, _, folder = args.data.partition(":")
    if kind != "folder" or not folder:
        raise UserError(f"{args.data}: is not known; evaluation data are given as folder:DIR")
    loaded = arguments.load_weights(args.weights, args)
    found = scan(arguments.path_of(folder), loaded.num_classes)
    result, unreadable = evaluate(loaded, found.items, args.batch_size)
    if args.format == "json":
        print(json.dumps({**result, "unreadable": unreadable, "ignored": found.ignored}, indent=2))
        return 0
    print(f"top-1 {100 * result['top1']:.2f} %, top-5 {100 * result['top5']:.2f} % of {result['count']} images")
    for message in (*unreadable, *found.ignored):
        print(f"left out: {message}", file=sys.stderr)
    if left_out := len(unreadable) + len(found.ignored):
        print(f"left out in all: {left_out:,}", file=sys.stderr)
    return 0


def scan(folder: Path, num_classes: int) -> "ClassFolders":
    """The images of DIR, as training lists a split's."""
    from squeezenet_jax.data import archives, layouts

    try:
        found = layouts.class_folders(folder)
    except UserError as error:
        raise UserError(f"folder:{error}") from None
    where = f"folder:{archives.printable(str(folder))}"
    if len(found.class_names) != num_classes:
        splits = [name for name in found.class_names if name in layouts.SPLITS]
        hint = f"; {splits[0]} may be a split: folder:DIR/{splits[0]}" if splits else ""
        raise UserError(
            f"{where}: has {len(found.class_names)} class folders; the network has {num_classes} classes{hint}"
        )
    if not found.items:
        raise UserError(f"{where}: has no files in its class folders")
    return found


def evaluate(weights: "Weights", items: "Sequence[Item]", batch_size: int) -> tuple[dict[str, float], list[str]]:
    """({"top1", "top5": fractions, "count"}, one line per unreadable file). Every readable file counts once."""
    import jax.numpy as jnp
    import numpy as np

    from squeezenet_jax.commands.inference import batched, compile_forward
    from squeezenet_jax.training import objective
    from squeezenet_jax.weights.images import read_image

    unreadable: list[str] = []
    label_of = {Path(item.path): item.label for item in items}

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
