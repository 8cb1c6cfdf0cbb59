"""Options that several commands share."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from squeezenet_jax.network import memory
from squeezenet_jax.network.trace import Layer
from squeezenet_jax.system import storage
from squeezenet_jax.system.errors import UserError

if TYPE_CHECKING:
    from squeezenet_jax.weights import Weights
    from squeezenet_jax.weights.classify import Compile


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


def path_of(text: str) -> Path:
    """A path as a person writes it: a shell leaves the ~ of `folder:~/photos` and of `--labels=~/names` alone.

    What lies in a bucket is copied first. `UserError`, which begins with the text, where that is not possible.
    """
    try:
        return storage.brought(text)
    except UserError as error:
        raise UserError(f"{text}: {error}") from None


def out_path(text: str) -> Path:
    """`path_of` for argparse, which shows no other error's text."""
    try:
        return path_of(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def load_weights(path: str, args: argparse.Namespace) -> "Weights":
    """`weights.load` with the options above, and a note where the preprocessing is a guess: a wrong one looks like bad
    weights (0 instead of 68 % for DeepScale's v1.1)."""
    from squeezenet_jax import weights
    from squeezenet_jax.weights.formats import run_directory
    from squeezenet_jax.weights.formats.state_dicts import OTHERS, TAKEN
    from squeezenet_jax.weights.formats.torchvision_layout import ASSUMED

    loaded = weights.load(path, preprocessing=args.preprocessing, bypass=args.bypass, state_dict=args.state_dict)
    origin = loaded.provenance
    if args.state_dict is None and OTHERS in origin and origin.get("source") == Path(path).name:  # else it was earlier
        taken = origin.get(TAKEN, "the one at its top level")
        print(f"note: of {path}, {taken} is read; --state-dict chooses {origin[OTHERS]}", file=sys.stderr)
    if said := run_directory.remark(origin):
        print(f"note: {path}: {said}", file=sys.stderr)
    if args.preprocessing is None and ASSUMED in loaded.provenance:
        print(
            f"note: {path} does not say which preprocessing it needs; {loaded.preprocessing.name} is assumed "
            "(DeepScale's own weights need --preprocessing caffe)",
            file=sys.stderr,
        )
    return loaded


def add_labels_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--labels", metavar="FILE", help=what)
    add_position_option(parser, "take --labels as it is, though the weights have the same names in another order")


def add_engine_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        choices=("xla", "onnxruntime"),
        default="xla",
        help="onnxruntime, of the extra `export`: starts sooner, and faster with few images on a CPU",
    )


def compile_forward(args: argparse.Namespace) -> "Compile":
    """What the option above makes the logits' function with. `UserError` where its packages are not installed."""
    if args.engine == "xla":
        from squeezenet_jax.weights import inference

        return inference.compile_forward
    from squeezenet_jax.export import engines, load_format

    load_format(".onnx", what="--engine: onnxruntime")
    return engines.onnxruntime


def add_position_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--classes-by-position", action="store_true", help=what)


def labels_of(args: argparse.Namespace, loaded: "Weights") -> tuple[str, ...]:
    """Class names in the network's order: those of --labels, else the weights' own. `UserError` where they disagree."""
    from squeezenet_jax.weights import classes

    if not args.labels:
        return loaded.labels
    labels = read_labels(args.labels)
    if len(labels) != loaded.num_classes:
        raise UserError(f"--labels: {len(labels)} names do not match {loaded.num_classes} classes")
    if not args.classes_by_position:
        try:
            classes.check_labels(loaded.labels, labels)
        except UserError as error:
            raise UserError(f"--labels: {error}") from None
    return labels


def read_labels(path: str) -> tuple[str, ...]:
    """The names that `--labels` gives."""
    from squeezenet_jax import weights

    return weights.read_labels(path_of(path), "--labels")


def memory_lines(layers: Sequence[Layer], image_size: int) -> list[str]:
    """A device's budget, for people: bytes of the weights, and of the activations of one image at their peak."""
    peak = memory.peak_activations(layers, image_size)
    weights = {precision: memory.weight_bytes(layers, precision) for precision in memory.VALUE_BYTES}
    activations = {precision: peak.bytes(precision) for precision in memory.VALUE_BYTES}
    return [
        f"{name}: " + ", ".join(f"{count:,} bytes in {precision}" for precision, count in counts.items()) + where
        for name, counts, where in (
            ("weights", weights, ""),
            ("peak activations", activations, f", at {peak.layer}, batch 1"),
        )
    ]
