"""export WEIGHTS OUT: the network as a file for another runtime or a folder for a hub, verified before it is named."""

import argparse
import dataclasses
import sys
import time
from typing import TYPE_CHECKING, Any

from squeezenet_jax.commands import arguments
from squeezenet_jax.network.trace import count
from squeezenet_jax.system import storage
from squeezenet_jax.system.errors import UserError

if TYPE_CHECKING:
    from squeezenet_jax.export import Int8
    from squeezenet_jax.weights import Weights

INT8_OPTIONS = ("per_tensor", "max_drop", "input_type", "output_type")
COMPRESSED = (".sqz", ".net")  # whose file is smaller than int8 is


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help="any file, run or name that `convert` reads")
    parser.add_argument(
        "out",
        metavar="OUT",
        type=arguments.out_path,
        help="a path that ends in .onnx, .stablehlo or .tflite; of --format hub, a new or an empty folder",
    )
    parser.add_argument(
        "--format",
        choices=("hub",),
        help="hub: OUT is a folder for a model hub, with weights, config and model card",
    )
    parser.add_argument("--opset", type=int, help="of .onnx (default: 17)")
    parser.add_argument(
        "--image-size", type=int, help="px; the file takes images of this size only (default: the weights' own crop)"
    )
    switch: dict[str, Any] = {"action": "store_true", "default": None}
    parser.add_argument("--int8", **switch, help="weights and activations of .onnx or .tflite in 8 bits")
    parser.add_argument(
        "--calibrate", metavar="DIR", help="images of the network's kind; in its class folders, accuracy is counted"
    )
    parser.add_argument("--per-tensor", **switch, help="of int8: one scale for all filters of a layer")
    parser.add_argument(
        "--max-drop",
        metavar="POINTS",
        type=float,
        help="of int8: what top-1 on DIR may lose before the file is refused (default: 5); without classes, how many "
        "of 100 answers may change (default: 15)",
    )
    for end in ("input", "output"):
        parser.add_argument(f"--{end}-type", choices=("float32", "int8", "uint8"), help="of int8 (default: float32)")
    arguments.add_labels_option(parser, "class names to put into OUT, one a line")
    arguments.add_reading_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.format == "hub":
        return _run_hub(args)
    _check_int8(args)
    from squeezenet_jax import export
    from squeezenet_jax.system import devices

    # A wrong suffix, a missing package or device is told before anything is read.
    suffix = export.check_out(args.out, args.opset, is_int8=bool(args.int8))
    export.load_format(suffix)
    if args.int8:
        export.load_format(suffix, export.INT8_FORMATS)
    devices.available()
    loaded = arguments.load_weights(args.weights, args)
    loaded = dataclasses.replace(loaded, labels=arguments.labels_of(args, loaded))
    network = export.from_weights(loaded, args.image_size)
    int8 = _int8(args, loaded) if args.int8 else None
    start = time.perf_counter()
    exported = export.export(network, args.out, opset=args.opset, int8=int8)
    seconds = time.perf_counter() - start
    out = storage.named(str(exported.path))
    print(f"{args.weights} -> {out}: {exported.size:,} bytes, written and verified in {seconds:.1f} s")
    image = "x".join(map(str, (network.image_size, network.image_size, network.channels)))
    print(f"{image} images, preprocessing {loaded.preprocessing.name}, {network.num_classes} classes")
    for message in exported.unreadable:
        print(f"left out: {storage.named(message)}", file=sys.stderr)
    print(exported.difference if exported.cost is None else f"in float, {exported.difference}")
    if exported.cost:
        print(exported.cost)
    layers = network.layers()
    _, macs = count(layers)
    print("\n".join([f"{macs:,} MACs", *arguments.memory_lines(layers, network.image_size)]))
    given = arguments.path_of(args.weights)
    if given.suffix.lower() in COMPRESSED and given.is_file():
        print(f"weights as they are compressed: {given.stat().st_size:,} bytes")
    return 0


def _check_int8(args: argparse.Namespace) -> None:
    """`--int8` and `--calibrate` come together; without them the other options of int8 mean nothing."""
    if bool(args.int8) != bool(args.calibrate):
        raise UserError("--int8: needs --calibrate DIR, images of the network's kind, and --calibrate needs --int8")
    for option in INT8_OPTIONS:
        if getattr(args, option) is not None and not args.int8:
            raise UserError(f"--{option.replace('_', '-')}: is of --int8")


def _int8(args: argparse.Namespace, loaded: "Weights") -> "Int8":
    from squeezenet_jax import export

    pictures = export.pictures_in(args.calibrate, loaded, by_position=args.classes_by_position)
    for note in pictures.notes:
        print(note if note.startswith("left out: ") else f"note: {note}", file=sys.stderr)
    try:
        return export.Int8(
            pictures, bool(args.per_tensor), args.max_drop, args.input_type or "float32", args.output_type or "float32"
        )
    except UserError as error:
        field, _, rest = str(error).partition(": ")
        raise UserError(f"--{field.replace('_', '-')}: {rest}") from None


def _run_hub(args: argparse.Namespace) -> int:
    from squeezenet_jax.export import hub

    for option in ("opset", "image_size", "int8", "calibrate", *INT8_OPTIONS):
        if getattr(args, option) is not None:
            raise UserError(f"--{option.replace('_', '-')}: is not for --format hub")
    storage.local_only(storage.named(str(args.out)), "OUT", "with --format hub it must be a local folder")
    hub.check_out(args.out)
    loaded = arguments.load_weights(args.weights, args)
    loaded = dataclasses.replace(loaded, labels=arguments.labels_of(args, loaded))
    run = arguments.path_of(args.weights)
    out = hub.export_hub(args.out, loaded, run if (run / "run.json").is_file() else None)
    files = ", ".join(sorted(path.name for path in out.iterdir()))
    print(f"{args.weights} -> {args.out}: {files}; written and read back")
    print(f"read {args.out / 'README.md'} and set its licence, then upload: hf upload OWNER/NAME {args.out}")
    return 0
