"""benchmark input NAME:DIR ...: how many images a core reads, decodes and crops in a second."""

import argparse
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from squeezenet_jax.system.errors import UserError

if TYPE_CHECKING:
    from squeezenet_jax.data.sources import Source

BATCH = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("input",), help="what is timed")
    parser.add_argument(
        "sources",
        metavar="NAME:DIR",
        nargs="+",
        help="data.name and data.dir: folder:photos, imagenet2012:~/tensorflow_datasets",
    )
    parser.add_argument("--image-size", type=int, default=224, help="px (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each line (default: %(default)s)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.image_size < 1 or not 0 < args.seconds < 3600:
        raise UserError("--image-size must be at least 1 px, --seconds above 0 and below 3600")
    rows = [row for source in args.sources for row in measure(source, args.image_size, args.seconds)]
    if args.format == "json":
        print(json.dumps(rows, indent=2))
        return 0
    print(f"{'source':<28}{'use':<12}{'decoder':<12}{'images/s per core':>18}{'ms of CPU':>11}")
    for row in rows:
        per_core = row["images_per_second_per_core"]
        print(f"{row['source']:<28}{row['use']:<12}{row['decoder']:<12}{per_core:>18,.0f}{1000 / per_core:>11.2f}")
    from squeezenet_jax.system.cores import cores

    print(
        f"One thread, CPU time; this machine lets a run use {cores()} cores. Reading from the disk's cache is included."
    )
    return 0


def measure(text: str, image_size: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each use of the images (training, evaluation) and decoder."""
    from squeezenet_jax.data import catalog, sources
    from squeezenet_jax.data.images import decoding
    from squeezenet_jax.settings import DataSettings

    name, colon, directory = text.partition(":")
    if not colon or name == "digits":
        raise UserError(f"{text}: is not known; a source is given as NAME:DIR, such as folder:photos")
    found = catalog.info(name, directory)
    split = "train" if "train" in found.splits else next(iter(found.splits))
    rows = []
    for decoder in ("pillow", "simplejpeg") if decoding.SIMPLEJPEG else ("pillow",):
        data = DataSettings(
            name=name,
            dir=directory,
            train_split=split,
            eval_split=split,
            image_size=image_size,
            channels=found.channels,
            num_classes=found.num_classes,
            crop="random_resized",
            eval_resize=round(image_size * 256 / 224),
            decoder=decoder,
        )
        source = sources.load(data, "train_split")
        for use in ("training", "evaluation"):
            rate = images_per_cpu_second(reader(source, draws=use == "training"), seconds)
            rows.append({"source": text, "use": use, "decoder": decoder, "images_per_second_per_core": rate})
    return rows


def reader(source: "Source", *, draws: bool) -> Callable[[int], int]:
    """A function that reads the batch of a number, in a random order, and returns how many images were readable."""
    import numpy as np

    order = np.random.default_rng(0).permutation(len(source))

    def read(number: int) -> int:
        index = order[np.arange(BATCH * number, BATCH * (number + 1)) % len(order)]
        draw = np.stack([np.full_like(index, number), index], axis=1) if draws else None
        return int(source.read(index, draw)["mask"].sum())

    return read


def images_per_cpu_second(batch: Callable[[int], int], seconds: float) -> float:
    """`batch(number)` reads a batch and returns how many of its images it could read."""
    batch(0)  # opens files
    began, images, number = time.process_time(), 0, 0
    while time.process_time() - began < seconds:
        number += 1
        images += batch(number)
    if not images:
        raise UserError("none of the images could be read")
    return images / (time.process_time() - began)
