"""predict WEIGHTS IMAGE...: the most probable classes of image files. Letters: N images, K classes.

A photograph is looked at as it was taken: turned by its EXIF orientation, whatever the network was trained on (unlike
`evaluate`, which does to images what their network's accuracy was measured with). What is transparent is white.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from squeezenet_jax.commands import arguments
from squeezenet_jax.system.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from squeezenet_jax.weights import Weights

BATCH_SIZE = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help="any file or run that `convert` reads")
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="turned as their EXIF orientation says; what is transparent is white"
    )
    parser.add_argument("--top", type=int, default=5, help="classes per image (default: %(default)s)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--logits", metavar="FILE", help="write the array `logits` [N, K] and the `image` names, .npz")
    arguments.add_labels_option(parser, "class names, one a line (default: those in WEIGHTS)")
    arguments.add_reading_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import numpy as np

    if args.top < 1:
        raise UserError(f"--top: {args.top} is not allowed; it must be at least 1")
    loaded = arguments.load_weights(args.weights, args)
    labels = arguments.labels_of(args, loaded)
    names, logits_NK, bad = _logits(loaded, args.images)
    if args.logits:
        try:
            with arguments.path_of(args.logits).open("wb") as file:  # by name, `savez` would append .npz
                np.savez(file, logits=logits_NK, image=np.array(names))
        except OSError as error:
            raise UserError(f"--logits: {args.logits} cannot be written ({error.strerror})") from None
    rows = [
        {"image": name, "top": top_classes(logits_K, labels, args.top)}
        for name, logits_K in zip(names, logits_NK, strict=True)
    ]
    print(json.dumps(rows, indent=2) if args.format == "json" else _table(rows))
    for message in bad:
        print(f"left out: {message}", file=sys.stderr)
    return 1 if bad else 0


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


def _logits(weights: "Weights", images: list[str]) -> "tuple[list[str], np.ndarray, list[str]]":
    """(names, logits [N, K]) of the images that can be read, and a line for each of the others.

    Raises:
      UserError: there is none that can be read.
    """
    import numpy as np

    from squeezenet_jax.weights.images import read_image

    bad: dict[Path, str] = {}

    def read(path: Path) -> np.ndarray | None:
        try:
            return None if path in bad else read_image(path, weights.preprocessing, upright=True)
        except UserError as error:
            bad[path] = str(error)
            return None

    paths = [arguments.path_of(image) for image in images]
    if all(read(path) is None for path in paths):  # wrong paths should not have to wait for the compiler
        if len(bad) == 1:
            raise UserError(*bad.values())
        raise UserError(f"none of the {len(bad)} images can be read; the first: {bad[paths[0]]}")
    from squeezenet_jax.commands.inference import batched, compile_forward

    size = min(BATCH_SIZE, len(paths))
    forward = compile_forward(weights, size, len(paths))
    logits_NK = np.concatenate([forward(image_BHWC) for _, image_BHWC in batched(paths, read, size)])
    names = [image for image, path in zip(images, paths, strict=True) if path not in bad]
    return names, logits_NK, list(bad.values())


def _table(rows: list[dict[str, Any]]) -> str:
    from squeezenet_jax.data.archives import printable  # names from a file or a disk may hold anything

    lines: list[str] = []
    for row in rows:
        lines.append(printable(row["image"]))
        for top in row["top"]:
            label = printable(top["label"]) or f"class {top['class']}"
            lines.append(f"  {100 * top['probability']:6.2f} %  {label}")
    return "\n".join(lines)
