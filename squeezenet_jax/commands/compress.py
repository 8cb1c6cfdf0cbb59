"""compress WEIGHTS OUT: a small file of a trained network; decompress IN OUT: another format again, as `convert`.

Without options nothing is lost: for weights that are quantised already. `--bits` and `--density` need no images and
cost accuracy; `--calibrate` looks at a folder of images, without labels, and keeps to a size.
"""

import argparse
import dataclasses
import functools
import math
import re
import sys
import time
from typing import TYPE_CHECKING

from squeezenet_jax.commands import arguments, convert
from squeezenet_jax.system import atomic, storage
from squeezenet_jax.system.errors import UserError

if TYPE_CHECKING:
    from squeezenet_jax.weights import Weights
    from squeezenet_jax.weights.quantized import QuantizedLayer

SUFFIXES = (".sqz", ".net")
UNITS = {"": 1, "k": 1000, "m": 1_000_000}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help="any file or run that `convert` reads")
    parser.add_argument("out", metavar="OUT", type=arguments.out_path, help=".sqz, or .net for Caffe's v1.0")
    parser.add_argument(
        "--bits", type=int, metavar="N", help="2**N different weights in a layer, by k-means, without images: 2 to 8"
    )
    parser.add_argument(
        "--density", type=float, metavar="D", help="keep this share of each layer's weights, the largest; no training"
    )
    parser.add_argument("--bytes", metavar="SIZE", help="of OUT, at most: 320k is 320,000; needs --calibrate")
    parser.add_argument(
        "--calibrate", metavar="DIR", type=arguments.out_path, help="images of the network's kind, without labels"
    )
    arguments.add_labels_option(parser, "class names to put into OUT, one a line")
    arguments.add_reading_options(parser)
    parser.set_defaults(run=run)


def add_decompress_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="IN", help="a compressed file, or any other that `convert` reads")
    convert.add_options(parser, "OUT")


def run(args: argparse.Namespace) -> int:
    from squeezenet_jax import compress, weights
    from squeezenet_jax.weights.formats.sqz.layers import MAX_VALUES
    from squeezenet_jax.weights.quantized import codebooks, parameters

    num_bytes = check(args)
    loaded = arguments.load_weights(args.weights, args)
    loaded = dataclasses.replace(loaded.folded(), labels=arguments.labels_of(args, loaded))
    start = time.perf_counter()
    how = {name: str(getattr(args, name)) for name in ("bits", "density", "bytes") if getattr(args, name) is not None}
    described = dataclasses.replace(loaded, provenance={**loaded.provenance, **how})
    if num_bytes is None:
        layers = quantize(loaded, args.bits, args.density, 255 if args.out.suffix.lower() == ".net" else MAX_VALUES)
    else:
        report = functools.partial(print, file=sys.stderr, flush=True)
        layers = compress.calibrate(described, args.calibrate, num_bytes=num_bytes, report=report)
    result = dataclasses.replace(described, params=parameters(layers), codebooks=codebooks(layers))
    weights.save(args.out, result)
    size = args.out.stat().st_size
    print(table(loaded, layers))
    print(storage.named(f"{args.weights} -> {args.out}: {size:,} bytes in {time.perf_counter() - start:.1f} s"))
    if args.out.suffix.lower() == ".net" and loaded.labels:
        print("note: a .net has no room for class names", file=sys.stderr)
    return 0


def check(args: argparse.Namespace) -> int | None:
    """The size asked for, if any. Raises `UserError` for options that make no sense, before anything is read."""
    if args.out.suffix.lower() not in SUFFIXES:
        raise UserError(f"OUT: {args.out} is not allowed; it must end in {' or '.join(SUFFIXES)}")
    atomic.check_place(args.out, "OUT")
    if args.bits is not None and not 2 <= args.bits <= 8:
        raise UserError(f"--bits: {args.bits} is not allowed; it must be from 2 to 8")
    if args.density is not None and not 0 < args.density <= 1:
        raise UserError(f"--density: {args.density:g} is not allowed; it must be above 0 and at most 1")
    for option in ("bits", "density"):
        if getattr(args, option) is not None and (args.bytes or args.calibrate):
            raise UserError(f"--{option}: cannot be chosen with --bytes and --calibrate, which choose it by layer")
    if bool(args.bytes) != bool(args.calibrate):
        given, needed = ("--bytes", "--calibrate DIR") if args.bytes else ("--calibrate", "--bytes SIZE")
        raise UserError(f"{given}: needs {needed} beside it; without images, there is --bits N")
    if not args.bytes:
        return None
    if args.out.suffix.lower() != ".sqz":
        raise UserError("--bytes: is for .sqz; a .net is larger than its content needs")
    return bytes_of(args.bytes)


def bytes_of(text: str) -> int:
    """The number of bytes in "320k", which is decimal."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([kKmM]?)[bB]?", text)
    number = int(float(match[1]) * UNITS[match[2].lower()]) if match else 0
    if number < 1:
        raise UserError(f"--bytes: {text!r} is not allowed; it must be a size such as 320k or 320000")
    return number


def quantize(loaded: "Weights", bits: int | None, density: float | None, most: int) -> "list[QuantizedLayer]":
    """Layers with at most `most` different weights besides 0; without options, exactly those of the network."""
    from squeezenet_jax.compress import sharing
    from squeezenet_jax.weights.bundle import flatten, unflatten
    from squeezenet_jax.weights.quantized import from_weights

    flat = dict(flatten(loaded.params))
    kernels = [name for name in flat if name.endswith("/kernel")]
    if density is not None:
        flat |= {name: sharing.prune(flat[name], density) for name in kernels}
    if bits is None:
        return from_weights(dataclasses.replace(loaded, params=unflatten(flat)), most)
    names = [name.removesuffix("/kernel") for name in kernels]
    return [sharing.share(name, flat[f"{name}/kernel"], flat[f"{name}/bias"], bits) for name in names]


def table(loaded: "Weights", layers: "list[QuantizedLayer]") -> str:
    """By layer: how many weights, how many kept, bits of a code, bytes in the stream, relative error."""
    from squeezenet_jax.compress.sharing import relative_error
    from squeezenet_jax.weights.bundle import flatten
    from squeezenet_jax.weights.formats.compressed import sizes

    flat = flatten(loaded.params)
    width = max(len(layer.name) for layer in layers)
    lines = [f"{'layer':{width}} {'weights':>10} {'kept':>10} {'':>6} {'bits':>4} {'bytes':>10} {'error':>8}"]
    number = kept = 0
    all_bytes = sizes(layers)
    for layer, size in zip(layers, all_bytes, strict=True):
        code = layer.code_HWIO
        here = int((code > 0).sum())
        number, kept = number + code.size, kept + here
        bits = math.ceil(math.log2(len(layer.values)))
        error = relative_error(flat[f"{layer.name}/kernel"], layer.kernel_HWIO)
        lines.append(
            f"{layer.name:{width}} {code.size:>10,} {here:>10,} {here / code.size:>6.1%} {bits:>4} {size:>10,.0f} "
            f"{error:>8.2%}"
        )
    lines.append(f"{'all':{width}} {number:>10,} {kept:>10,} {kept / number:>6.1%} {'':>4} {sum(all_bytes):>10,.0f}")
    return "\n".join(lines)
