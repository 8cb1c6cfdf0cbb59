"""convert SRC DST: weights of any known format to .safetensors, .sqz or .net."""

import argparse
import dataclasses

from squeezenet_jax.commands import arguments
from squeezenet_jax.network import architecture
from squeezenet_jax.network.architecture import Architecture
from squeezenet_jax.network.trace import count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "src",
        metavar="SRC",
        help=".safetensors, .sqz, .pth, .caffemodel, .net, a run's directory, a model hub's folder; or a name, which "
        "is downloaded once: torchvision:squeezenet1_0, torchvision:squeezenet1_1, hf:OWNER/NAME[@REVISION][/FILE]",
    )
    add_options(parser, "DST")


def add_options(parser: argparse.ArgumentParser, dst: str) -> None:
    """All but the first argument; `dst` is the second's name in the help."""
    parser.add_argument("dst", metavar=dst, help=".safetensors; or, for quantised weights, .sqz or .net")
    parser.add_argument(
        "--layout",
        choices=("squeezenet_jax", "torchvision"),
        default="squeezenet_jax",
        help=f"names and kernel order in a .safetensors {dst}; its metadata say everything in both "
        "(default: %(default)s)",
    )
    arguments.add_labels_option(parser, f"class names to put into {dst}, one a line")
    arguments.add_reading_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from squeezenet_jax import weights
    from squeezenet_jax.weights.bundle import listing

    weights.check_suffix(arguments.path_of(args.dst), args.layout)
    loaded = arguments.load_weights(args.src, args)
    loaded = dataclasses.replace(loaded, labels=arguments.labels_of(args, loaded))
    weights.save(arguments.path_of(args.dst), loaded, args.layout)
    params, macs = count(loaded.trace())
    layout = f" ({args.layout})" if args.dst.lower().endswith(".safetensors") else ""
    origin = listing(loaded.provenance.get(name, "unknown") for name in ("source", "format"))
    print(f"{args.src} -> {args.dst}{layout}; origin: {origin}")
    print(f"{params:,} parameters, {loaded.num_classes} classes, {macs:,} MACs at {loaded.preprocessing.crop} px")
    labels = "with class names" if loaded.labels else "without class names (--labels FILE adds them)"
    if args.dst.lower().endswith(".net"):
        labels = "without class names (a .net has no room for them)"
    print(f"preprocessing {loaded.preprocessing.name}, {describe_bypass(loaded.arch)}, {labels}")
    geometry = architecture.with_geometry(loaded.arch, "torchvision")
    if args.layout == "torchvision" and geometry != loaded.arch:
        print("note: torchvision's own code computes other borders (padding, pools) than this network was trained with")
    if args.layout == "torchvision" and loaded.preprocessing.name != "torchvision":
        print(f"note: images must still be preprocessed as for {loaded.preprocessing.name}, not as torchvision does")
    return 0


def describe_bypass(arch: Architecture) -> str:
    fires = [str(number) for number, spec in arch.fires() if spec.bypass != "none"]
    return f"bypass around fire {', '.join(fires)}" if fires else "no bypass"
