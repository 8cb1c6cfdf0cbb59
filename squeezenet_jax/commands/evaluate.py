"""evaluate WEIGHTS folder:DIR: top-1 and top-5 on a folder of one folder per class. Letters: B batch, K classes."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from squeezenet_jax.commands import arguments
from squeezenet_jax.system.errors import UserError

if TYPE_CHECKING:
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
    label_of = class_of_each_file(Path(folder), loaded.num_classes)
    result, unreadable = evaluate(loaded, label_of, args.batch_size)
    if args.format == "json":
        print(json.dumps({**result, "unreadable": unreadable}, indent=2))
        return 0
    print(f"top-1 {100 * result['top1']:.2f} %, top-5 {100 * result['top5']:.2f} % of {result['count']} images")
    for message in unreadable:
        print(f"left out: {message}", file=sys.stderr)
    return 0


def class_of_each_file(folder: Path, num_classes: int) -> dict[Path, int]:
    """Every file in DIR's folders -> the place of its folder among them, sorted by name; hidden ones are left out."""
    try:
        classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
        files = {
            folder / name / entry.name: place
            for place, name in enumerate(classes)
            for entry in sorted(os.scandir(folder / name), key=lambda entry: entry.name)
            if entry.is_file() and entry.name[0] != "."
        }
    except OSError as error:
        raise UserError(f"folder:{folder}: cannot be read ({error.strerror})") from None
    if len(classes) != num_classes:
        raise UserError(f"folder:{folder}: has {len(classes)} class folders; the network has {num_classes} classes")
    if not files:
        raise UserError(f"folder:{folder}: has no files in its class folders")
    return files


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
