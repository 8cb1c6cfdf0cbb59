"""Options that several commands share."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from squeezenet_jax.system.errors import UserError

if TYPE_CHECKING:
    from squeezenet_jax.weights import Weights

MAX_LABELS_BYTES = 1 << 24


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


def path_of(text: str) -> Path:
    """A path as a person writes it: a shell leaves the ~ of `folder:~/photos` and of `--labels=~/names` alone."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # nobody's home: then it is a file's name
        return Path(text)


def load_weights(path: str, args: argparse.Namespace) -> "Weights":
    """`weights.load` with the options above, and a note where the preprocessing is a guess: a wrong one looks like bad
    weights (0 instead of 68 % for DeepScale's v1.1)."""
    from squeezenet_jax import weights
    from squeezenet_jax.weights.torchvision_layout import ASSUMED

    loaded = weights.load(path_of(path), preprocessing=args.preprocessing, bypass=args.bypass)
    if args.preprocessing is None and ASSUMED in loaded.provenance:
        print(
            f"note: {path} does not say which preprocessing it needs; {loaded.preprocessing.name} is assumed "
            "(DeepScale's own weights need --preprocessing caffe)",
            file=sys.stderr,
        )
    return loaded


def read_labels(path: str) -> tuple[str, ...]:
    """One class name a line, in class order."""
    try:
        if not Path(path).is_file() or Path(path).stat().st_size > MAX_LABELS_BYTES:
            raise UserError(f"--labels: {path} is not a file of class names")
        return tuple(line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--labels: {path} cannot be read ({type(error).__name__})") from None
