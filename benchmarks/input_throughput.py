"""Training images per second and core: JPEG file to a batch of random 224 px crops, here and by torch's DataLoader.

    python benchmarks/input_throughput.py FOLDER [--out FILE]        (needs benchmarks/requirements.txt)

The photographs (*.jpg, *.jpeg below FOLDER) are read as they are, and re-encoded with a short side of 256 px.
torch: Image.open, convert("RGB"), v2.RandomResizedCrop(224, antialias=True), RandomHorizontalFlip, PILToTensor, batches
of uint8; in the process itself (0 workers) and in one worker, which is kept between the turns. Ours: one thread reads,
`random_resized_crop` decodes, the batch is a uint8 array. (Its flip happens on the accelerator and is not part of it.)

The contenders take turns, A B C A B C ..., so that a slow phase of the machine meets all of them. CPU time is user and
system time of the process and of its worker: 1000 / (CPU ms per image) is what a core does in a second. The table has
the turns' medians and quartiles, and as speed the median of torch's CPU time over the contender's in the same round.
"""

import argparse
import importlib.metadata
import io
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from squeezenet_jax.data.images.crops import random_resized_crop
from squeezenet_jax.system.randomness import Purpose

SIZE = 224
MIN_AREA = 0.08
STORED_SIDE, STORED_QUALITY = 256, 90
BASELINES = ("torch DataLoader, 1 worker", "torch DataLoader, 0 workers")
VERSIONS = ("torch", "torchvision", "pillow", "simplejpeg", "numpy")

Turn = Callable[[], tuple[int, float]]  # runs one turn; images, and the CPU seconds of its workers


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="photographs, at any depth")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a batch (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=5, help="batches in a turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contender (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write every turn and the versions to FILE")
    return parser.parse_args(argv)


class Photographs:
    """torch's map-style dataset of one turn. At the top of the module, so that a worker can be given it."""

    def __init__(self, paths: list[Path], length: int) -> None:
        from torchvision.transforms import v2

        self.paths, self.length = paths, length
        crop = v2.RandomResizedCrop(SIZE, scale=(MIN_AREA, 1.0), antialias=True)
        self.transform = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        with self.paths[index % len(self.paths)].open("rb") as file:
            return self.transform(Image.open(file).convert("RGB"))


def collate(images: list[Any]) -> tuple[Any, float]:
    """The batch and the CPU seconds that this process has used."""
    from torch.utils.data import default_collate

    return default_collate(images), time.process_time()


def torch_turn(paths: list[Path], batch_size: int, batches: int, workers: int) -> Turn:
    from torch.utils.data import DataLoader

    loader = DataLoader(
        Photographs(paths, batch_size * batches),
        batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
    )
    last_clock = 0.0  # the worker idles between the turns, so its clock stands still

    def turn() -> tuple[int, float]:
        nonlocal last_clock
        images, clock, start = 0, 0.0, last_clock
        for batch, clock in loader:  # noqa: B007 - the last one is used
            images += len(batch)
        last_clock = clock
        return images, clock - start if workers else 0.0

    return turn


def our_turn(paths: list[Path], batch_size: int, batches: int, decoder: Any) -> Turn:
    epochs = itertools.count()

    def turn() -> tuple[int, float]:
        epoch = next(epochs)
        for start in range(0, batch_size * batches, batch_size):
            batch = np.empty((batch_size, SIZE, SIZE, 3), np.uint8)
            for place in range(batch_size):
                index = start + place
                encoded = paths[index % len(paths)].read_bytes()
                rng = np.random.default_rng([0, Purpose.AUGMENT, epoch, index])
                batch[place] = random_resized_crop(encoded, SIZE, 3, rng, min_area=MIN_AREA, decoder=decoder)
        return batch_size * batches, 0.0

    return turn


def reencode(paths: list[Path], folder: Path) -> list[Path]:
    """The same photographs with a short side of 256 px, as a prepared dataset would keep them."""
    written = []
    for number, path in enumerate(paths):
        picture = Image.open(path).convert("RGB")
        scale = STORED_SIDE / min(picture.size)
        size = (round(picture.width * scale), round(picture.height * scale))
        written.append(folder / f"{number:06}.jpg")
        picture.resize(size, Image.Resampling.BILINEAR).save(written[-1], quality=STORED_QUALITY)
    return written


def measure(turns: dict[str, Turn], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Of every contender's turns, in the order of the rounds: wall and CPU milliseconds per image."""
    for turn in turns.values():  # starts the worker, fills the page cache
        turn()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            wall, cpu = time.perf_counter(), time.process_time()
            images, workers_cpu = turn()
            cpu_ms = 1e3 * (time.process_time() - cpu + workers_cpu) / images
            results[name].append({"wall_ms": 1e3 * (time.perf_counter() - wall) / images, "cpu_ms": cpu_ms})
    return results


def summarise(results: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    rows = []
    for name, turns in results.items():
        row: dict[str, Any] = {"contender": name}
        for kind in ("wall_ms", "cpu_ms"):
            low, median, high = statistics.quantiles([turn[kind] for turn in turns], n=4)
            row[kind] = {"median": median, "quartiles": [low, high]}
        row["images_per_second"] = 1e3 / row["wall_ms"]["median"]
        row["images_per_core_second"] = 1e3 / row["cpu_ms"]["median"]
        for baseline in BASELINES:
            pairs = zip(results[baseline], turns, strict=True)
            row[f"speed per core, {baseline} = 1"] = statistics.median(b["cpu_ms"] / t["cpu_ms"] for b, t in pairs)
        rows.append(row)
    return rows


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    heads = ("contender", 30), ("images/s", 9), ("CPU ms/image", 13), ("quartiles", 12), ("images/core-s", 15)
    print(f"{heads[0][0]:<30}" + "".join(f"{head:>{width}}" for head, width in heads[1:]) + f"{'speed per core':>16}")
    for row in rows:
        quartiles = "{:.2f}-{:.2f}".format(*row["cpu_ms"]["quartiles"])
        speeds = " / ".join(f"{row[f'speed per core, {baseline} = 1']:.2f}" for baseline in BASELINES)
        print(
            f"{row['contender']:<30}{row['images_per_second']:>9.0f}{row['cpu_ms']['median']:>13.2f}{quartiles:>12}"
            f"{row['images_per_core_second']:>15.0f}{speeds:>16}"
        )


def main() -> None:
    args = parse()
    import torch

    torch.set_num_threads(1)  # as the DataLoader does in its workers
    paths = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        sys.exit(f"{args.folder}: no *.jpg or *.jpeg in it")
    report: dict[str, Any] = {
        "batch_size": args.batch_size,
        "batches": args.batches,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in VERSIONS},
        "photographs": {},
    }
    print(f"{args.rounds} turns of {args.batches} batches of {args.batch_size}; {report['versions']}")
    print(f"speed per core: CPU time of {BASELINES[0]} / of {BASELINES[1]}, over the contender's")
    with tempfile.TemporaryDirectory() as folder:
        kinds = {"as they are": paths, f"short side {STORED_SIDE} px": reencode(paths, Path(folder))}
        for kind, files in kinds.items():
            shape = (files, args.batch_size, args.batches)
            turns = {name: torch_turn(*shape, workers) for name, workers in zip(BASELINES, (1, 0), strict=True)}
            turns |= {f"ours, {decoder}": our_turn(*shape, decoder) for decoder in ("pillow", "simplejpeg")}
            results = measure(turns, args.rounds)
            rows = summarise(results)
            sizes = [Image.open(io.BytesIO(path.read_bytes())).size for path in files]
            side = statistics.median(min(size) for size in sizes)
            size_kb = statistics.mean(path.stat().st_size for path in files) / 1e3
            title = f"{len(files)} photographs, {kind}: median short side {side:.0f} px, mean {size_kb:.0f} kB"
            print_table(title, rows)
            report["photographs"][kind] = {"count": len(files), "title": title, "rows": rows, "turns": results}
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
