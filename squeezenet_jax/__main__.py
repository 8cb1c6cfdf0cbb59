"""python -m squeezenet_jax COMMAND: what can be done without training. `COMMAND --help` lists a command's options."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from squeezenet_jax.system import ending, malloc, terminal
from squeezenet_jax.system.errors import UserError


class Parser(argparse.ArgumentParser):
    """One line for a wrong command line, like for every other wrong input."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main(argv: Sequence[str]) -> int:
    # Only now, when `run` has seen to Ctrl-C.
    from squeezenet_jax.commands import (
        benchmark,
        compress,
        convert,
        evaluate,
        export,
        predict,
        prepare,
        report,
        runs,
        summary,
    )

    parser = Parser(prog="python -m squeezenet_jax", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    summary.add_arguments(commands.add_parser("summary", help="output shapes, parameters and MACs of every layer"))
    convert.add_arguments(commands.add_parser("convert", help="weights of any format to .safetensors, .sqz or .net"))
    compress.add_arguments(commands.add_parser("compress", help="a small file of a trained network, .sqz or .net"))
    compress.add_decompress_arguments(commands.add_parser("decompress", help="a compressed file to another format"))
    predict.add_arguments(commands.add_parser("predict", help="the most probable classes of image files"))
    evaluate.add_arguments(commands.add_parser("evaluate", help="top-1 and top-5 on a folder, a dataset, a run's own"))
    export.add_arguments(commands.add_parser("export", help="weights to .onnx, .stablehlo, .tflite or a model hub"))
    prepare.add_arguments(commands.add_parser("prepare", help="images in folders or archives to a TFDS dataset"))
    report.add_arguments(commands.add_parser("report", help="the report of finished runs, of several workdirs joined"))
    runs.add_arguments(commands.add_parser("runs", help="the workdirs in a folder and how their runs stand"))
    benchmark.add_arguments(commands.add_parser("benchmark", help="how fast this machine reads and decodes images"))

    def command() -> int:
        args = parser.parse_args(argv)
        return int(args.run(args))

    return ending.exit_code(command)


def run() -> NoReturn:
    """The program: `python -m squeezenet_jax` and, where the package is installed, `squeezenet-jax`."""
    malloc.restart_with_tuned_malloc()
    ending.leave_on_ctrl_c()
    terminal.prepare_output()
    code = main(sys.argv[1:])
    if code == ending.INTERRUPTED:
        ending.exit_at_once(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
