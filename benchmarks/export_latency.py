"""Batch-1 latency of the exported files beside jax itself: one machine, one run, the same two threads for each.

    python benchmarks/export_latency.py WEIGHTS [--preprocessing caffe] [--calibrate DIR] [--json FILE]

WEIGHTS is exported (and verified) to a temporary folder; with --calibrate DIR, a folder of images of the network's
kind, in int8 too, with floats at both ends. Then the contenders take turns, A B C A B C ...: in each turn a few calls
to warm up (the previous contender's threads may still be spinning), then timed ones, NumPy image in, NumPy logits
out. A turn counts as its median call. The table has the turns' median, quartiles and best, and as speed the median of
jax's time over the contender's in the same round, which a slow phase of the machine hardly touches. Other load hurts
most those whose threads wait for each other actively (onnxruntime, LiteRT): look at the best turn too.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

BASELINE = "jax.jit"
WARM_UP_CALLS = 3
VERSIONS = ("jax", "onnx", "onnxruntime", "litert-converter", "ai-edge-litert")

Call = Callable[[np.ndarray], np.ndarray]  # one image [1, H, W, C] -> logits [1, K]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", metavar="WEIGHTS", help="any file or run that `convert` reads")
    parser.add_argument("--preprocessing", choices=("caffe", "torchvision"), help="overrides the file's")
    parser.add_argument("--calibrate", metavar="DIR", help="images of the network's kind: also time int8 files")
    parser.add_argument("--threads", type=int, default=2, help="of each contender (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each contender (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=10, help="timed calls in a turn (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every turn and the versions to FILE")
    return parser.parse_args(argv)


def limit_threads(threads: int) -> None:
    """Binds the process to so many cores. XLA's thread pool has no option, but counts the cores that it may use."""
    if not hasattr(os, "sched_setaffinity"):
        print("note: this system cannot bind a process to cores; jax uses all of them")
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < threads:
        print(f"note: there are only {len(cores)} cores")
    os.sched_setaffinity(0, cores[:threads])


def run_onnx(path: Path, image: np.ndarray, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    image_BCHW = np.ascontiguousarray(image.transpose(0, 3, 1, 2))  # its users have their images in this order
    return lambda _: session.run(["logits"], {"image": image_BCHW})[0]


def run_litert(path: Path, threads: int) -> Call:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=path.read_bytes(), num_threads=threads)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(x: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(source["index"], x)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(target["index"]))

    return run


def contenders(
    weights_path: str, preprocessing: str | None, calibrate: str | None, threads: int
) -> tuple[dict[str, Call], np.ndarray]:
    """Name -> call, and an image. Imports jax only now, after the cores are limited."""
    import jax

    from squeezenet_jax import export, weights
    from squeezenet_jax.export.verify import sample_images
    from squeezenet_jax.network import lowering

    loaded = weights.load(weights_path, preprocessing=preprocessing)
    network = export.from_weights(loaded)
    image = sample_images(network, 1)
    calls: dict[str, Call] = {}

    def compiled(options: dict[str, Any]) -> Call:
        program = jax.jit(network.apply).lower(image).compile(options)
        return lambda x: np.asarray(program(x))

    calls[BASELINE] = compiled({})
    calls["jax.jit, lowering.compiler_options()"] = compiled(dict(lowering.compiler_options()))

    with tempfile.TemporaryDirectory() as folder:
        files = {suffix: Path(folder) / f"network{suffix}" for suffix in export.FORMATS}
        for path in files.values():
            print(f"{path.suffix}: {export.export(network, path).difference}")

        calls[".stablehlo, jax.export"] = export.load_format(".stablehlo").load(files[".stablehlo"])

        calls[".onnx, onnxruntime"] = run_onnx(files[".onnx"], image, threads)
        calls[".tflite, LiteRT"] = run_litert(files[".tflite"], threads)
        expected = network.reference(image)
        for name, call in calls.items():
            np.testing.assert_allclose(call(image), expected, atol=1e-4 * float(np.abs(expected).max()), err_msg=name)
        if calibrate:
            int8 = export.Int8(export.pictures_in(calibrate, loaded))
            for suffix in export.INT8_FORMATS:
                path = Path(folder) / f"int8{suffix}"
                exported = export.export(network, path, int8=int8)
                print(f"{suffix} in int8: {exported.size:,} bytes; {exported.cost}")
            calls[".onnx in int8, onnxruntime"] = run_onnx(Path(folder) / "int8.onnx", image, threads)
            calls[".tflite in int8, LiteRT"] = run_litert(Path(folder) / "int8.tflite", threads)
    return calls, image


def measure(calls: dict[str, Call], image: np.ndarray, rounds: int, timed_calls: int) -> dict[str, list[float]]:
    """Milliseconds of every contender's turns, in the order of the rounds."""
    turns: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(WARM_UP_CALLS):
                call(image)
            times = []
            for _ in range(timed_calls):
                start = time.perf_counter()
                call(image)
                times.append(1e3 * (time.perf_counter() - start))
            turns[name].append(statistics.median(times))
    return turns


def summarise(turns: dict[str, list[float]]) -> list[dict[str, Any]]:
    rows = []
    for name, times in turns.items():
        low, median, high = statistics.quantiles(times, n=4)
        ratio = statistics.median(base / own for base, own in zip(turns[BASELINE], times, strict=True))
        times_ms = {"median_ms": median, "quartiles_ms": [low, high], "best_ms": min(times)}
        rows.append({"contender": name, **times_ms, "speed": ratio})
    return rows


def main() -> None:
    args = parse()
    limit_threads(args.threads)
    calls, image = contenders(args.weights, args.preprocessing, args.calibrate, args.threads)
    turns = measure(calls, image, args.rounds, args.calls)
    rows = summarise(turns)
    size = "x".join(map(str, image.shape[1:]))
    print(f"\n{Path(args.weights).name}, batch 1, {size}")
    print(f"{args.threads} threads, {args.rounds} turns of {args.calls} calls")
    print(f"{'contender':<38}{'median ms':>10}{'quartiles':>14}{'best':>8}{'speed, jax.jit = 1':>20}")
    for row in rows:
        quartiles = "{:.1f}-{:.1f}".format(*row["quartiles_ms"])
        times = f"{row['median_ms']:>10.2f}{quartiles:>14}{row['best_ms']:>8.2f}"
        print(f"{row['contender']:<38}{times}{row['speed']:>20.2f}")
    if args.json:
        versions = {name: importlib.metadata.version(name) for name in VERSIONS}
        report = {
            "weights": Path(args.weights).name,
            "image": list(image.shape),
            "threads": args.threads,
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "versions": {"python": platform.python_version(), **versions},
            "rows": rows,
            "turns_ms": turns,
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
