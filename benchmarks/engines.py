"""Inference with either engine of `predict` and `evaluate`, beside onnxruntime by itself.

    python benchmarks/engines.py WEIGHTS [--preprocessing caffe] [--batches 1,32] [--rounds 20] [--folder DIR]

For each batch, milliseconds of: `xla`, `onnxruntime` (`--engine onnxruntime`), and `alone`: a session with
onnxruntime's default options on the exported file, whose images are [B, C, H, W] already. The three take turns, each in
a process of its own with the commands' setting of malloc; a round is the median of several calls. With DIR, class
folders of photographs, also seconds of whole processes that evaluate them: `evaluate` with either engine, Pillow and
onnxruntime, and torchvision's dataset, transforms and network with torch's DataLoader (where torchvision is installed).
Speed is the other's time over ours in the same round: above 1, ours is faster.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from squeezenet_jax import build, weights
from squeezenet_jax.export import engines, export_weights
from squeezenet_jax.system import children, cores, malloc
from squeezenet_jax.weights import inference
from squeezenet_jax.weights.bundle import Weights

ENGINES = {"xla": inference.compile_forward, "onnxruntime": engines.onnxruntime}  # by their names as an option
ALONE = "alone"
PILLOW = """
import glob, sys
import numpy as np, onnxruntime
from PIL import Image
model, folder, mode, resize, crop, scale, order, mean, std = sys.argv[1:10]
resize, crop = int(resize), int(crop)
mean, std = (np.array([float(x) for x in text.split(",")], np.float32) for text in (mean, std))
session = onnxruntime.InferenceSession(model)
answers, batch = [], []
def flush():
    if batch:
        answers.extend(session.run(None, {"image": np.stack(batch)})[0].argmax(1)); batch.clear()
for path in sorted(glob.glob(folder + "/*/*")):
    image = Image.open(path).convert("RGB")
    w, h = image.size
    side = resize / min(w, h)
    image = image.resize((resize, resize) if mode == "squash" else (round(w * side), round(h * side)), Image.BILINEAR)
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    x = np.asarray(image.crop((left, top, left + crop, top + crop)), np.float32) * float(scale)
    x = ((x[..., ::-1] if order == "BGR" else x) - mean) / std
    batch.append(np.ascontiguousarray(x.transpose(2, 0, 1), np.float32))
    if len(batch) == 16:
        flush()
flush()
print(len(answers))
"""
TORCHVISION = """
import sys
import torch, torchvision
from safetensors.torch import load_file
from torchvision import transforms
weights, folder, version, mode, resize, crop, workers = sys.argv[1:]
resize, crop = int(resize), int(crop)
transform = transforms.Compose([
    transforms.Resize((resize, resize) if mode == "squash" else resize), transforms.CenterCrop(crop),
    transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
dataset = torchvision.datasets.ImageFolder(folder, transform, allow_empty=True)
model = torchvision.models.get_model("squeezenet" + version).eval()
model.load_state_dict(load_file(weights))
answers = 0
with torch.inference_mode():
    for images, labels in torch.utils.data.DataLoader(dataset, batch_size=32, num_workers=int(workers)):
        answers += len(model(images).argmax(1))
print(answers)
"""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", metavar="WEIGHTS", help="any file or run that `convert` reads")
    parser.add_argument("--preprocessing", choices=("caffe", "torchvision"), help="overrides the file's")
    parser.add_argument("--batches", default="1,32", help="images at a time (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="class folders of photographs")
    return parser.parse_args(argv)


def alone(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file))
    return lambda image_BCHW: np.asarray(session.run(None, {"image": image_BCHW})[0])


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def show(title: str, unit: str, seconds: Mapping[str, list[float]]) -> None:
    """A line for each contender, and how fast ours are beside each of the others."""
    print(title, flush=True)
    for name in seconds:
        print(f"  {name:20s} {quartiles(seconds[name])} {unit}", flush=True)
        for other in [other for other in seconds if other not in ENGINES] if name in ENGINES else ():
            ratios = [theirs / own for own, theirs in zip(seconds[name], seconds[other], strict=True)]
            print(f"  {'':20s} speed beside {other}: {quartiles(ratios)}", flush=True)


def answer(pipe: Any, name: str, loaded: Weights, file: Path, image_BHWC: np.ndarray) -> None:
    """A contender's process: sends its logits, and then for each number of calls the median of their seconds."""
    image, batch = image_BHWC, len(image_BHWC)
    if name == ALONE:
        run, image = alone(file), np.ascontiguousarray(image_BHWC.transpose(0, 3, 1, 2))
    else:
        run = ENGINES[name](loaded, batch, 10**6)
    pipe.send(run(image))
    while True:
        calls, times = pipe.recv(), []
        for _ in range(calls):
            start = time.perf_counter()
            run(image)
            times.append(time.perf_counter() - start)
        pipe.send(statistics.median(times))


def latency(loaded: Weights, file: Path, batch: int, rounds: int) -> None:
    size, calls = loaded.preprocessing.crop, max(3, 30 // batch)
    image_BHWC = np.random.default_rng(0).normal(size=(batch, size, size, loaded.channels)).astype(np.float32)
    started = {name: children.start(answer, name, loaded, file, image_BHWC) for name in (*ENGINES, ALONE)}
    milliseconds: dict[str, list[float]] = {name: [] for name in started}
    try:
        logits = {name: pipe.recv() for name, (pipe, _) in started.items()}
        for name in ENGINES:
            np.testing.assert_allclose(logits[name], logits[ALONE], atol=1e-4 * np.abs(logits[ALONE]).max())
        for _ in range(rounds):
            for name, (pipe, _) in started.items():
                pipe.send(calls)
                milliseconds[name].append(1e3 * pipe.recv())
    finally:
        for _, process in started.values():
            process.kill()
    show(f"batch {batch}", "ms", milliseconds)


def processes(args: argparse.Namespace, loaded: Weights, file: Path, rounds: int) -> None:
    """`file` is the exported network; beside it there is room."""
    p = loaded.preprocessing
    ours = [sys.executable, "-m", "squeezenet_jax", "evaluate", args.weights, f"folder:{args.folder}"]
    ours += ["--classes-by-position"] if not loaded.labels else []
    ours += ["--preprocessing", args.preprocessing] if args.preprocessing else []
    numbers = (",".join(map(str, x)) for x in (p.mean, p.std))
    pillow = [str(file), str(args.folder), p.mode, str(p.resize), str(p.crop), str(p.scale), p.channel_order, *numbers]
    commands = {name: [*ours, "--engine", name] for name in ENGINES}
    commands["onnxruntime, Pillow"] = [sys.executable, "-c", PILLOW, *pillow]
    version = "v1.0" if loaded.arch.stem.kernel == 7 else "v1.1"
    published = list(loaded.arch.fires()) == list(build(version).fires()) and loaded.num_classes == 1000
    for workers in (0, cores.cores()) if published and importlib.util.find_spec("torchvision") else ():
        layout = file.with_name("torchvision.safetensors")
        weights.save(layout, loaded, "torchvision")
        name = version[1:].replace(".", "_")
        given = [str(layout), str(args.folder), name, p.mode, str(p.resize), str(p.crop), str(workers)]
        commands[f"torchvision, {workers} workers"] = [sys.executable, "-c", TORCHVISION, *given]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", *malloc.TUNABLES))}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    show(f"whole processes, {len(list(args.folder.glob('*/*')))} photographs", "s", seconds)


def main() -> None:
    args = parse()
    loaded = weights.load(args.weights, preprocessing=args.preprocessing)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        print(json.dumps({"export": str(export_weights(file, loaded).size)}), flush=True)
        for batch in map(int, args.batches.split(",")):
            latency(loaded, file, batch, args.rounds)
        if args.folder:
            processes(args, loaded, file, max(3, args.rounds // 4))


if __name__ == "__main__":
    malloc.restart_with_tuned_malloc()  # as the commands do
    main()
