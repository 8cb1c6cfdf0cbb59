"""Options that several commands share."""

import argparse
import os
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
    parser.add_argument(
        "--state-dict", metavar="KEY", help="which network of a checkpoint with several: state_dict_ema, model, ..."
    )


def load_weights(path: str, args: argparse.Namespace) -> "Weights":
    """`weights.load` with the options above, and a note where the preprocessing is a guess: a wrong one looks like bad
    weights (0 instead of 68 % for DeepScale's v1.1)."""
    from squeezenet_jax import weights
    from squeezenet_jax.weights.state_dicts import OTHERS, TAKEN
    from squeezenet_jax.weights.torchvision_layout import ASSUMED

    loaded = weights.load(path, preprocessing=args.preprocessing, bypass=args.bypass, state_dict=args.state_dict)
    origin = loaded.provenance
    if args.state_dict is None and OTHERS in origin and origin.get("source") == Path(path).name:  # else it was earlier
        taken = origin.get(TAKEN, "the one at its top level")
        print(f"note: of {path}, {taken} is read; --state-dict chooses {origin[OTHERS]}", file=sys.stderr)
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
        path = os.path.expanduser(path)
        if not Path(path).is_file() or Path(path).stat().st_size > MAX_LABELS_BYTES:
            raise UserError(f"--labels: {path} is not a file of class names")
        return tuple(line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--labels: {path} cannot be read ({type(error).__name__})") from None
