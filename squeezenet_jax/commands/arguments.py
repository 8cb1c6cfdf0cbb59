"""Options that several commands share."""

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from squeezenet_jax.weights import Weights


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preprocessing",
        choices=("caffe", "torchvision"),
        help="overrides the file's; for files with torchvision's names, which do not say, it also sets the geometry "
        "(default there: torchvision; DeepScale's weights under those names need caffe)",
    )
    parser.add_argument(
        "--bypass", choices=("none", "simple"), help="for formats that cannot say it: a simple bypass has no parameters"
    )


def load_weights(path: str, args: argparse.Namespace) -> "Weights":
    """`weights.load` with the options above, and a note where the preprocessing is a guess: a wrong one looks like bad
    weights (0 instead of 68 % for DeepScale's v1.1)."""
    from squeezenet_jax import weights
    from squeezenet_jax.weights.torchvision_layout import ASSUMED

    loaded = weights.load(path, preprocessing=args.preprocessing, bypass=args.bypass)
    if args.preprocessing is None and ASSUMED in loaded.provenance:
        print(
            f"note: {path} does not say which preprocessing it needs; {loaded.preprocessing.name} is assumed "
            "(DeepScale's own weights need --preprocessing caffe)",
            file=sys.stderr,
        )
    return loaded


def read_labels(path: str) -> tuple[str, ...]:
    """The names that `--labels` gives."""
    from squeezenet_jax import weights

    return weights.read_labels(path, "--labels")
