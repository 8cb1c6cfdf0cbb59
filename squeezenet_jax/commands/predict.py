"""predict WEIGHTS IMAGE...: the most probable classes of image files. Letters: N images, K classes.

A photograph is looked at as it was taken: turned by its EXIF orientation, whatever the network was trained on (unlike
`evaluate`, which does to images what their network's accuracy was measured with). What is transparent is white.
"""

import argparse
import io
import json
import sys
import zipfile
from typing import TYPE_CHECKING, Any

from squeezenet_jax.commands import arguments
from squeezenet_jax.system import atomic, storage
from squeezenet_jax.system.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from squeezenet_jax.weights import Weights
    from squeezenet_jax.weights.classify import Compile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help="any file, run or name that `convert` reads")
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="turned as their EXIF orientation says; what is transparent is white"
    )
    parser.add_argument("--top", type=int, default=5, help="classes per image (default: %(default)s)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--logits", metavar="FILE", help="write the array `logits` [N, K] and the `image` names, .npz")
    arguments.add_labels_option(parser, "class names, one a line (default: those in WEIGHTS)")
    arguments.add_engine_option(parser)
    arguments.add_reading_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.top < 1:
        raise UserError(f"--top: {args.top} is not allowed; it must be at least 1")
    if out := arguments.path_of(args.logits) if args.logits else None:
        atomic.check_place(out, "--logits")
        if out.is_file() and out.stat().st_size and not zipfile.is_zipfile(out):  # an image: its own name was forgotten
            raise UserError(f"--logits: {args.logits} is there and is no .npz; it would be lost")
    compile_forward = arguments.compile_forward(args)
    loaded = arguments.load_weights(args.weights, args)
    labels = arguments.labels_of(args, loaded)
    if not labels:
        print(f"note: {args.weights} has no class names; --labels FILE gives them, one a line", file=sys.stderr)
    names, logits_NK, bad = _logits(loaded, args.images, compile_forward)
    if out:
        try:
            import numpy as np

            content = io.BytesIO()
            np.savez(content, logits=logits_NK, image=np.array(names))
            atomic.write(out, content.getvalue())
        except OSError as error:
            raise UserError(f"--logits: {args.logits} cannot be written ({error.strerror})") from None
    rows = [_row(path, logits_K, labels, args.top) for path, logits_K in zip(names, logits_NK, strict=True)]
    print(json.dumps(rows, indent=2) if args.format == "json" else _table(rows))
    for message in bad:
        print(f"left out: {storage.named(message)}", file=sys.stderr)
    return 1 if bad else 0


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


def _logits(
    weights: "Weights", images: list[str], compile_forward: "Compile"
) -> "tuple[list[str], np.ndarray, list[str]]":
    """(names, logits [N, K]) of the images that can be read, and a line for each of the others.

    Raises:
      UserError: there is none that can be read.
    """
    from squeezenet_jax.weights import classify

    bad: dict[int, str] = {}
    paths = [arguments.path_of(image) for image in images]
    logits_NK = classify.logits(weights, paths, lambda number, error: bad.update({number: str(error)}), compile_forward)
    if len(bad) == len(images) == 1:
        raise UserError(bad[0])
    if len(bad) == len(images):
        raise UserError(f"none of the {len(bad)} images can be read; the first: {bad[0]}")
    return [image for number, image in enumerate(images) if number not in bad], logits_NK, list(bad.values())


def _table(rows: list[dict[str, Any]]) -> str:
    from squeezenet_jax.data.archives import printable  # names from a file or a disk may hold anything

    lines: list[str] = []
    for row in rows:
        lines.append(printable(row["image"]))
        for top in row["top"]:
            label = printable(top["label"]) or f"class {top['class']}"
            lines.append(f"  {100 * top['probability']:6.2f} %  {label}")
    return "\n".join(lines)
