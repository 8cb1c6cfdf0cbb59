"""Accuracy against bytes of calibrated files, on photographs that were not used to calibrate them.

    python benchmarks/compression_curve.py WEIGHTS DIR [--sizes 230k,260k,...] [--preprocessing caffe] [--json FILE]

DIR holds the network's class folders. Its photographs are dealt out into two halves, class by class; the network is
calibrated on one half, without labels, and judged on the other, both ways. For each size the table has the bytes of
both files, how many of all photographs are answered right, how many answers are those of the uncompressed network, and
the mean Kullback-Leibler divergence from its answers, which tells files apart long before accuracy can. A file that is
calibrated on all photographs should be a little better. A few minutes a size on two cores.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from squeezenet_jax import compress, weights
from squeezenet_jax.commands.compress import bytes_of
from squeezenet_jax.export import pictures_in
from squeezenet_jax.weights import classify
from squeezenet_jax.weights.bundle import Weights
from squeezenet_jax.weights.formats import compressed
from squeezenet_jax.weights.quantized import codebooks, parameters

SIZES = "230k,260k,280k,300k,320k,360k,400k,450k,500k"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", metavar="WEIGHTS", help="any file or run that `convert` reads")
    parser.add_argument("folder", metavar="DIR", help="class folders of photographs")
    parser.add_argument("--sizes", default=SIZES, help="bytes, separated by commas (default: %(default)s)")
    parser.add_argument("--preprocessing", choices=("caffe", "torchvision"), help="overrides the file's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    return parser.parse_args(argv)


def compressed_to(num_bytes: int, network: Weights, paths: list[Path]) -> tuple[Weights, int]:
    """(the network calibrated on these photographs, bytes of its file)"""
    layers = compress.calibrate(network, paths, num_bytes=num_bytes)
    smaller = dataclasses.replace(network, params=parameters(layers), codebooks=codebooks(layers))
    return smaller, len(compressed.write(smaller))


def log_softmax(logits_NK: np.ndarray) -> np.ndarray:
    x_NK = logits_NK.astype(np.float64) - logits_NK.max(axis=1, keepdims=True)
    return np.asarray(x_NK - np.log(np.exp(x_NK).sum(axis=1, keepdims=True)))


def main() -> None:
    args = parse()
    network = weights.load(args.weights, preprocessing=args.preprocessing).folded()
    pictures = pictures_in(args.folder, network)
    if pictures.labels is None:
        sys.exit(f"error: {args.folder} is not one of the network's class folders")
    halves = [slice(0, None, 2), slice(1, None, 2)]
    label_N = np.concatenate([pictures.labels[half] for half in halves])
    paths = [list(pictures.paths[half]) for half in halves]
    before_NK = np.concatenate([classify.logits(network, half) for half in paths])
    p_NK = log_softmax(before_NK)
    count = len(label_N)
    rows = [{"size": None, "top1": float(np.mean(before_NK.argmax(axis=1) == label_N))}]
    print(f"{count} photographs, {100 * rows[0]['top1']:.2f} % right uncompressed", flush=True)
    print(f"{'size':>8} {'bytes':>17} {'top-1 %':>8} {'same answer %':>14} {'KL':>7} {'seconds':>8}", flush=True)
    for size in map(bytes_of, args.sizes.split(",")):
        start = time.perf_counter()
        files = [compressed_to(size, network, half) for half in paths]
        seconds = (time.perf_counter() - start) / len(files)
        after_NK = np.concatenate(
            [classify.logits(file, half) for (file, _), half in zip(files, paths[::-1], strict=True)][::-1]
        )
        answer_N = after_NK.argmax(axis=1)
        top1 = float(np.mean(answer_N == label_N))
        same = float(np.mean(answer_N == before_NK.argmax(axis=1)))
        kl = float(np.mean(np.sum(np.exp(p_NK) * (p_NK - log_softmax(after_NK)), axis=1)))
        sizes = [num_bytes for _, num_bytes in files]
        rows.append({"size": size, "bytes": sizes, "top1": top1, "same": same, "kl": kl, "seconds": seconds})
        text = "/".join(f"{x:,}" for x in sizes)
        print(f"{size:>8,} {text:>17} {100 * top1:>8.2f} {100 * same:>14.2f} {kl:>7.4f} {seconds:>8.0f}", flush=True)
    if args.json:
        args.json.write_text(
            json.dumps({"weights": Path(args.weights).name, "count": count, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
