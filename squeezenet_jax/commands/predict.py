"""predict WEIGHTS IMAGE...: the most probable classes of image files. Letters: N images, K classes."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from squeezenet_jax.commands import arguments
from squeezenet_jax.system.errors import UserError

if TYPE_CHECKING:
    import numpy as np


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help="any file or run that `convert` reads")
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    parser.add_argument("--top", type=int, default=5, help="classes per image (default: %(default)s)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--logits", metavar="FILE", help="write the array `logits` [N, K] and the `image` names, .npz")
    parser.add_argument("--labels", metavar="FILE", help="class names, one a line (default: those in WEIGHTS)")
    arguments.add_reading_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.top < 1:
        raise UserError(f"--top: {args.top} is not allowed; it must be at least 1")
    loaded = arguments.load_weights(args.weights, args)
    labels = arguments.read_labels(args.labels) if args.labels else loaded.labels
    if labels and len(labels) != loaded.num_classes:
        raise UserError(f"--labels: {len(labels)} names do not match {loaded.num_classes} classes")
    import numpy as np

    from squeezenet_jax.weights import classify

    logits_NK = classify.logits(loaded, args.images)
    if args.logits:
        try:
            with Path(args.logits).open("wb") as file:  # by name, `savez` would append .npz
                np.savez(file, logits=logits_NK, image=np.array(args.images))
        except OSError as error:
            raise UserError(f"--logits: {args.logits} cannot be written ({error.strerror})") from None
    rows = [_row(path, logits_K, labels, args.top) for path, logits_K in zip(args.images, logits_NK, strict=True)]
    print(json.dumps(rows, indent=2) if args.format == "json" else _table(rows))
    return 0


def _row(path: str, logits_K: "np.ndarray", labels: tuple[str, ...], top: int) -> dict[str, Any]:
    from squeezenet_jax.weights import classify

    return {
        "image": path,
        "top": [
            {
                "class": k,
                "label": labels[k] if labels else "",
                "probability": probability,
                "logit": float(logits_K[k]),
            }
            for k, probability in classify.top_classes(logits_K, top)
        ],
    }


def _table(rows: list[dict[str, Any]]) -> str:
    from squeezenet_jax.weights.bundle import listing  # a label from a file may hold anything

    lines: list[str] = []
    for row in rows:
        lines.append(row["image"])
        for top in row["top"]:
            label = listing([top["label"]]) or f"class {top['class']}"
            lines.append(f"  {100 * top['probability']:6.2f} %  {label}")
    return "\n".join(lines)
