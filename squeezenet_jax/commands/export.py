"""export WEIGHTS OUT: the network as a file for another runtime or a folder for a hub, verified before it is named."""

import argparse
import dataclasses
import time

from squeezenet_jax.commands import arguments
from squeezenet_jax.system.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help="any file, run or name that `convert` reads")
    parser.add_argument(
        "out",
        metavar="OUT",
        type=arguments.path_of,
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
    arguments.add_labels_option(parser, "class names to put into OUT, one a line")
    arguments.add_reading_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.format == "hub":
        return _run_hub(args)
    from squeezenet_jax import export
    from squeezenet_jax.system import devices

    # A wrong suffix, a missing package or device is told before anything is read.
    export.load_format(export.check_out(args.out, args.opset))
    devices.available()
    loaded = arguments.load_weights(args.weights, args)
    loaded = dataclasses.replace(loaded, labels=arguments.labels_of(args, loaded))
    network = export.from_weights(loaded, args.image_size)
    start = time.perf_counter()
    exported = export.export(network, args.out, opset=args.opset)
    seconds = time.perf_counter() - start
    print(f"{args.weights} -> {exported.path}: {exported.size:,} bytes, written and verified in {seconds:.1f} s")
    image = "x".join(map(str, (network.image_size, network.image_size, network.channels)))
    print(f"{image} images, preprocessing {loaded.preprocessing.name}, {network.num_classes} classes")
    print(exported.difference)
    return 0


def _run_hub(args: argparse.Namespace) -> int:
    from squeezenet_jax.export import hub

    for option in ("opset", "image_size"):
        if getattr(args, option) is not None:
            raise UserError(f"--{option.replace('_', '-')}: is not for --format hub")
    hub.check_out(args.out)
    loaded = arguments.load_weights(args.weights, args)
    loaded = dataclasses.replace(loaded, labels=arguments.labels_of(args, loaded))
    run = arguments.path_of(args.weights)
    out = hub.export_hub(args.out, loaded, run if (run / "run.json").is_file() else None)
    files = ", ".join(sorted(path.name for path in out.iterdir()))
    print(f"{args.weights} -> {args.out}: {files}; written and read back")
    print(f"read {args.out / 'README.md'} and set its licence, then upload: hf upload OWNER/NAME {args.out}")
    return 0
