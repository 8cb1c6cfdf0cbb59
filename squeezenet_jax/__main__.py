"""python -m squeezenet_jax COMMAND: what can be done without training. `COMMAND --help` lists a command's options."""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from typing import NoReturn

from squeezenet_jax.commands import benchmark, convert, evaluate, export, predict, prepare
from squeezenet_jax.network import architecture
from squeezenet_jax.system import malloc
from squeezenet_jax.system.errors import UserError


class Parser(argparse.ArgumentParser):
    """One line for a wrong command line, like for every other wrong input."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="python -m squeezenet_jax", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_summary(commands.add_parser("summary", help="output shapes, parameters and MACs of every layer"))
    convert.add_arguments(commands.add_parser("convert", help="published weights, or a run's, to .safetensors"))
    predict.add_arguments(commands.add_parser("predict", help="the most probable classes of image files"))
    evaluate.add_arguments(commands.add_parser("evaluate", help="top-1 and top-5 on a folder of images"))
    export.add_arguments(commands.add_parser("export", help="weights to .onnx, .stablehlo or .tflite"))
    prepare.add_arguments(commands.add_parser("prepare", help="images in folders or archives to a TFDS data set"))
    benchmark.add_arguments(commands.add_parser("benchmark", help="how fast this machine reads and decodes images"))
    for stream in (sys.stdout, sys.stderr):  # a name that they cannot express is no reason to end in a traceback
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        args = parser.parse_args(argv)
        return int(args.run(args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def add_summary(parser: argparse.ArgumentParser) -> None:
    paper = architecture.Metaparameters()
    parser.add_argument("--version", default="v1.0", help="v1.0 or v1.1")
    parser.add_argument("--bypass", default="none", help="none, simple or complex")
    parser.add_argument("--stem", default="card", help="card, or small for images of 8 to 64 px")
    parser.add_argument("--geometry", default="same", help="same (the model card), caffe or torchvision")
    parser.add_argument("--width", type=float, default=1.0, help="multiplies the filters of conv1 and the fires")
    parser.add_argument("--base-e", type=int, default=paper.base_e, help="expand filters of the first fire")
    parser.add_argument("--incr-e", type=int, default=paper.incr_e, help="expand filters added every --freq fires")
    parser.add_argument("--freq", type=int, default=paper.freq)
    parser.add_argument("--squeeze-ratio", type=float, default=paper.squeeze_ratio, help="squeeze / expand filters")
    parser.add_argument("--pct3x3", type=float, default=paper.pct3x3, help="share of expand filters that are 3x3")
    parser.add_argument("--image-size", type=int, default=224, help="px")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--num-classes", type=int, default=1000)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.set_defaults(run=summary)


def summary(args: argparse.Namespace) -> int:
    arch = architecture.build(
        args.version,
        stem=args.stem,
        geometry=args.geometry,
        width=args.width,
        bypass=args.bypass,
        metaparameters=architecture.Metaparameters(
            args.base_e, args.incr_e, args.freq, args.squeeze_ratio, args.pct3x3
        ),
    )
    layers = architecture.trace(arch, image_size=args.image_size, channels=args.channels, num_classes=args.num_classes)
    params, macs = architecture.count(layers)
    if args.format == "json":
        rows = [
            {"name": layer.name, "shape": layer.shape, "params": layer.params, "macs": layer.macs} for layer in layers
        ]
        print(json.dumps({"params": params, "macs": macs, "layers": rows}, indent=2))
        return 0
    print(f"{'layer':<18}{'output H x W x C':>20}{'params':>12}{'MACs':>16}")
    for layer in layers:
        shape = " x ".join(map(str, layer.shape))
        numbers = f"{layer.params:>12,}{layer.macs:>16,}" if layer.params else ""
        print(f"{layer.name:<18}{shape:>20}{numbers}")
    print(f"{'total':<18}{f'{params * 4 / 2**20:.2f} MiB':>20}{params:>12,}{macs:>16,}")
    return 0


if __name__ == "__main__":
    malloc.restart_with_tuned_malloc()
    sys.exit(main(sys.argv[1:]))
