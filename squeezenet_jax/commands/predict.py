"""predict WEIGHTS IMAGE...: the most probable classes of image files. Letters: N images, K classes."""

import argparse
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from squeezenet_jax.commands import arguments
from squeezenet_jax.system import atomic
from squeezenet_jax.system.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from squeezenet_jax.weights import Weights

BATCH_SIZE = 16


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
    import numpy as np

    if args.top < 1:
        raise UserError(f"--top: {args.top} is not allowed; it must be at least 1")
    loaded = arguments.load_weights(args.weights, args)
    labels = arguments.read_labels(args.labels) if args.labels else loaded.labels
    if labels and len(labels) != loaded.num_classes:
        raise UserError(f"--labels: {len(labels)} names do not match {loaded.num_classes} classes")
    logits_NK = _logits(loaded, [Path(path) for path in args.images])
    if args.logits:
        try:
            content = io.BytesIO()
            np.savez(content, logits=logits_NK, image=np.array(args.images))
            atomic.write(Path(os.path.expanduser(args.logits)), content.getvalue())
        except OSError as error:
            raise UserError(f"--logits: {args.logits} cannot be written ({error.strerror})") from None
    rows = [
        {"image": path, "top": top_classes(logits_K, labels, args.top)}
        for path, logits_K in zip(args.images, logits_NK, strict=True)
    ]
    print(json.dumps(rows, indent=2) if args.format == "json" else _table(rows))
    return 0


def top_classes(logits_K: "np.ndarray", labels: tuple[str, ...], top: int) -> list[dict[str, Any]]:
    """The `top` classes with the largest logits, equal ones by class number, with their softmax probability."""
    import numpy as np

    exps = np.exp(logits_K.astype(np.float64) - logits_K.max())
    return [
        {
            "class": int(k),
            "label": labels[k] if labels else "",
            "probability": float(exps[k] / exps.sum()),
            "logit": float(logits_K[k]),
        }
        for k in np.argsort(-logits_K, kind="stable")[:top]
    ]


def _logits(weights: "Weights", paths: list[Path]) -> "np.ndarray":
    import numpy as np

    from squeezenet_jax.weights.images import read_image

    read_image(paths[0], weights.preprocessing)  # a wrong path should not have to wait for the compiler
    from squeezenet_jax.commands.inference import batched, compile_forward

    size = min(BATCH_SIZE, len(paths))
    forward = compile_forward(weights, size, len(paths))
    batches = batched(paths, lambda path: read_image(path, weights.preprocessing), size)
    return np.concatenate([forward(image) for _, image in batches])


def _table(rows: list[dict[str, Any]]) -> str:
    from squeezenet_jax.weights.bundle import listing  # a label from a file may hold anything

    lines: list[str] = []
    for row in rows:
        lines.append(row["image"])
        for top in row["top"]:
            label = listing([top["label"]]) or f"class {top['class']}"
            lines.append(f"  {100 * top['probability']:6.2f} %  {label}")
    return "\n".join(lines)
