"""summary: a variant's layers with their output shapes, parameters and MACs, and its memory; imports no jax."""

import argparse
import dataclasses
import inspect
import json
from typing import Any

from squeezenet_jax import settings
from squeezenet_jax.commands import arguments
from squeezenet_jax.network import architecture, memory
from squeezenet_jax.network.trace import Layer, count, trace

# What makes a table; each is an option, with the default and meaning of the setting of its name.
METAPARAMETERS = tuple(inspect.signature(architecture.Metaparameters).parameters)
TABLE = (
    *(name for name in inspect.signature(architecture.build).parameters if name != "metaparameters"),
    *METAPARAMETERS,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    declared = {row.name: row for row in settings.ROWS}
    for name in TABLE:
        _, _, default, rule = declared[f"model.{name}"]
        meaning = f"{rule.meaning}; {rule.allowed or 'yes or no'} (default: {default})"
        kind: dict[str, Any] = {"type": type(default)}
        if isinstance(default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(f"--{name.replace('_', '-')}", **kind, default=default, help=meaning)
    parser.add_argument("--image-size", type=int, default=224, help="px")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--num-classes", type=int, default=1000)
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json has every column of a row")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    given = {name: getattr(args, name) for name in TABLE}
    metaparameters = architecture.Metaparameters(**{name: given.pop(name) for name in METAPARAMETERS})
    arch = architecture.build(**given, metaparameters=metaparameters)
    layers = trace(arch, image_size=args.image_size, channels=args.channels, num_classes=args.num_classes)
    params, macs = count(layers)
    if args.format == "json":
        rows = [
            dataclasses.asdict(layer)
            | {"params": layer.params, "macs": layer.macs, "activation_size": layer.activation_size}
            for layer in layers
        ]
        budget = {"params": params, "macs": macs, **_memory(layers, args.image_size)}
        print(json.dumps(budget | {"layers": rows}, indent=2))
        return 0
    print(f"{'layer':<18}{'output H x W x C':>20}{'params':>12}{'MACs':>16}")
    for layer in layers:
        if layer.kind == "concat":  # computes nothing
            continue
        shape = " x ".join(map(str, layer.shape))
        numbers = f"{layer.params:>12,}{layer.macs:>16,}" if layer.params else ""
        print(f"{layer.name:<18}{shape:>20}{numbers}")
    print(f"{'total':<18}{f'{params * 4 / 2**20:.2f} MiB':>20}{params:>12,}{macs:>16,}")
    print("\n".join(arguments.memory_lines(layers, args.image_size)))
    return 0


def _memory(layers: list[Layer], image_size: int) -> dict[str, Any]:
    peak = memory.peak_activations(layers, image_size)
    return {
        "weight_bytes": {precision: memory.weight_bytes(layers, precision) for precision in memory.VALUE_BYTES},
        "peak_activation_bytes": {precision: peak.bytes(precision) for precision in memory.VALUE_BYTES},
        "peak_activation_layer": peak.layer,
    }
