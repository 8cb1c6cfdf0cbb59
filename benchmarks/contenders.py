"""What `compare_pytorch.py` compares: the workloads, and each side's way to do them, in a process of its own.

    python benchmarks/contenders.py SIDE WORKLOAD THREADS [--first-step]

answers each line of its input (JSON: what to do) with a line (JSON). SIDE is "ours", or that without one of the forms
of `lowering_forms.py`, or a format of PyTorch's, which may end in `TUNED_MALLOC`: the environment of the process
decides about those.
"""

import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments import base, bypass
from squeezenet_jax.experiment import planning
from squeezenet_jax.settings import Settings, from_config
from squeezenet_jax.weights.bundle import flatten, parameter_shapes, unflatten

OURS = "ours"
WITHOUT = "ours without "  # and the name of one of `lowering_forms.FORMS`
TUNED_MALLOC = "+tuned_malloc"  # of a side of PyTorch's: with the setting of malloc that launch.py makes for itself
MATRIX, COPIED = 3072, 1 << 26  # of `limits`: side of a matrix, floats
# Trained without dropout on both sides: in parts, with Winograd's convolutions and a stem as a product; with Eigen's.
CHECKS = ("check_v1.1_224_b16", "check_small_16_b8")
MAIN_JOB = "bypass=none,seed=0"  # of experiments/bypass.py
BUSY_IS_KNOWN = sys.platform == "linux"
Params = dict[str, np.ndarray]


def workload_settings(name: str) -> Settings:
    kind, network, size, batch = name.split("_")
    small = network == "small"
    changes = {
        "model.version": "v1.0" if small else network,
        "model.stem": "small" if small else "card",
        "model.geometry": "same" if small else "torchvision",
        "model.width": 0.5 if small else 1.0,
        "model.kernel_init": "he_uniform",
        "model.dropout": 0.0 if kind == "check" else 0.5,
        "data.image_size": int(size),
        "data.channels": 3,
        "data.num_classes": 10 if small else 1000,
        "data.mean": (0.485, 0.456, 0.406),
        "data.std": (0.229, 0.224, 0.225),
        "optimizer.name": "sgd",
        "optimizer.peak_lr": 1e-3,
        "optimizer.schedule": "constant",
        "optimizer.warmup_epochs": 0.0,
        "optimizer.decay_bias": True,
        "optimizer.clip_norm": 0.0,
        "train.batch_size": int(batch[1:]),
        "train.eval_batch_size": int(batch[1:]),
    }
    return from_config(planning.unflatten(planning.flatten(base.get_config().to_dict()) | changes))


def main_job_settings() -> Settings:
    """Of one run of the main job, `MAIN_JOB`."""
    plan = planning.plan(bypass, base.PRESET, bypass.get_config().to_dict(), ())
    (run,) = plan.only(MAIN_JOB).runs
    return run.settings


def draw_params(settings: Settings) -> Params:
    """He-uniform kernels and small biases, by name."""
    arch, data, rng = settings.model.architecture(), settings.data, np.random.default_rng(0)
    params = {}
    for name, shape in parameter_shapes(arch, channels=data.channels, num_classes=data.num_classes).items():
        limit = (6 / np.prod(shape[:-1])) ** 0.5 if len(shape) > 1 else 0.1
        params[name] = rng.uniform(-limit, limit, shape).astype(np.float32)
    return params


def draw_batches(settings: Settings, count: int = 4) -> list[dict[str, np.ndarray]]:
    rng, data, size = np.random.default_rng(1), settings.data, settings.train.batch_size
    shape = (size, data.image_size, data.image_size, data.channels)
    return [
        {
            "image": rng.integers(0, 256, shape, np.uint8),
            "label": rng.integers(0, data.num_classes, size, np.int32),
            "mask": np.ones(size, np.int32),
            "index": np.arange(size, dtype=np.int32),
        }
        for _ in range(count)
    ]


def draw_images(settings: Settings) -> np.ndarray:
    size, data = settings.train.batch_size, settings.data
    shape = (size, data.image_size, data.image_size, data.channels)
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


class Ours:
    def __init__(self, settings: Settings) -> None:
        import jax

        from squeezenet_jax.system import devices

        self.jax, self.settings, self.mesh = jax, settings, devices.data_mesh()

    def prepare_training(self, params: Params) -> Callable[[int], float]:
        """The function that takes so many steps and returns the last one's mean loss."""
        from squeezenet_jax.system import devices
        from squeezenet_jax.training.compilation import compile_steps

        steps = compile_steps(self.settings, 10**6, 1e3, self.mesh)
        key = devices.run_key(0, self.mesh)
        batches = itertools.cycle(draw_batches(self.settings))
        self.state = steps.begin(devices.replicate({"params": unflatten(params)}, self.mesh))

        def take(count: int) -> float:
            for _ in range(count):
                self.state, tally = steps.train(self.state, devices.put_batch(next(batches), self.mesh), key)
            self.jax.block_until_ready(self.state)
            return float(tally["loss"]) / float(tally["count"])

        return take

    def params(self) -> Params:
        return {name: np.asarray(value) for name, value in flatten(self.state.params).items()}

    def prepare_inference(self, params: Params) -> Callable[[np.ndarray], np.ndarray]:
        from squeezenet_jax.weights.bundle import Weights, preprocessing_named
        from squeezenet_jax.weights.inference import compile_forward

        data, model = self.settings.data, self.settings.model
        preprocessing = preprocessing_named("torchvision")
        preprocessing = dataclasses.replace(preprocessing, resize=data.image_size, crop=data.image_size)
        arch, nested = model.architecture(), unflatten(params)
        weights = Weights(arch, nested, data.num_classes, data.channels, preprocessing, (), {})
        return compile_forward(weights, self.settings.train.batch_size)

    def limits(self) -> tuple[Callable[[], object], Callable[[], object]]:
        jnp, jit = self.jax.numpy, self.jax.jit
        a, x = jnp.ones((MATRIX, MATRIX)), jnp.ones(COPIED)
        product, shifted = jit(lambda a: a @ a), jit(lambda x: x + 1)
        return lambda: product(a).block_until_ready(), lambda: shifted(x).block_until_ready()


class Theirs:
    def __init__(self, settings: Settings, memory_format: str, threads: int) -> None:
        import pytorch_squeezenet
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.torch, self.module = torch, pytorch_squeezenet
        self.settings, self.memory_format = settings, memory_format

    def build(self, params: Params) -> Any:
        data = self.settings.data
        arch = self.settings.model.architecture()
        self.net = self.module.build(arch, data.channels, data.num_classes, self.memory_format)
        self.net.load(params)
        return self.net

    def prepare_training(self, params: Params) -> Callable[[int], float]:
        net = self.build(params)
        optimizer = self.module.build_optimizer(net, self.settings.optimizer)
        batches = itertools.cycle(draw_batches(self.settings))

        def take(count: int) -> float:
            for _ in range(count):
                loss = self.module.train_step(net, optimizer, next(batches), self.settings, self.memory_format)
            return float(loss)

        return take

    def params(self) -> Params:
        return dict(self.net.params())

    def prepare_inference(self, params: Params) -> Callable[[np.ndarray], np.ndarray]:
        net = self.build(params).eval()

        def forward(image_BHWC: np.ndarray) -> np.ndarray:
            with self.torch.inference_mode():
                return np.asarray(net(self.module.as_input(image_BHWC, self.memory_format)).numpy())

        return forward

    def limits(self) -> tuple[Callable[[], object], Callable[[], object]]:
        a, x = self.torch.ones((MATRIX, MATRIX)), self.torch.ones(COPIED)
        return lambda: a @ a, lambda: x + 1


def is_ours(side: str) -> bool:
    """Whole, or without a form."""
    return side == OURS or side.startswith(WITHOUT)


def make_side(side: str, settings: Settings, threads: int) -> "Ours | Theirs":
    if side.startswith(WITHOUT):
        from lowering_forms import take_away

        take_away(side.removeprefix(WITHOUT))
    return Ours(settings) if is_ours(side) else Theirs(settings, side.removesuffix(TUNED_MALLOC), threads)


def child(side: str, name: str, threads: int, first_step: bool) -> None:
    """Answers each line of its input (JSON) with a line (JSON): what is asked of one workload."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries that print must not talk into the answers
    if first_step:
        from squeezenet_jax.system import devices

        if side == OURS:
            devices.keep_compiled_programs()
        settings = main_job_settings()
        make_side(side, settings, threads).prepare_training(draw_params(settings))(1)
        print(json.dumps("done"), file=answers)
        return
    settings = workload_settings(CHECKS[0] if name == "limits" else name)
    contender = make_side(side, settings, threads)
    work: Callable[[int], object] | None = None
    image = draw_images(settings)
    for line in sys.stdin:
        request = json.loads(line)
        kind, argument = request["do"], request.get("argument")
        answer: Any = None
        if kind == "logits":
            answer = contender.prepare_inference(draw_params(settings))(image).tolist()
        elif kind == "train":
            contender.prepare_training(draw_params(settings))(argument)
            answer = {key: value.tolist() for key, value in contender.params().items()}
        elif kind == "prepare":
            work = prepare(contender, name, image)
            answer = timed(work, 1)["wall"]  # warms up; the first call may compile
            answer = timed(work, 2)["wall"]
        elif kind == "turn":
            assert work is not None
            work(max(1, argument // 4))
            before = busy_seconds() if BUSY_IS_KNOWN else 0.0
            answer = timed(work, argument)
            busy = busy_seconds() - before if BUSY_IS_KNOWN else 0.0
            answer["others"] = busy / answer["wall"] / argument - (answer["user"] + answer["system"]) / answer["wall"]
        elif kind == "limits":
            answer = [best(call, 5) for call in contender.limits()]
        elif kind == "memory":
            answer = peak_memory()
        print(json.dumps(answer), file=answers)


def prepare(contender: "Ours | Theirs", name: str, image: np.ndarray) -> Callable[[int], object]:
    params = draw_params(contender.settings)
    if name.startswith("train"):
        take = contender.prepare_training(params)

        def train(count: int) -> None:
            loss = take(count)
            assert np.isfinite(loss), loss

        return train
    forward = contender.prepare_inference(params)

    def infer(count: int) -> None:
        for _ in range(count):
            forward(image)

    return infer


def timed(work: Callable[[int], object], count: int) -> dict[str, float]:
    """Seconds per call: wall, and of all threads user and system."""
    before, start = os.times(), time.perf_counter()
    work(count)
    wall, after = time.perf_counter() - start, os.times()
    user, system = after.user - before.user, after.system - before.system
    return {"wall": wall / count, "user": user / count, "system": system / count}


def best(call: Callable[[], object], count: int) -> float:
    call()
    return min(timed(lambda _: call(), 1)["wall"] for _ in range(count))


def peak_memory() -> int:
    """Bytes of the largest resident set so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used; Linux only."""
    fields = Path("/proc/stat").read_text().split()
    return sum(int(fields[place]) for place in (1, 2, 3)) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    side, workload, threads, *flags = sys.argv[1:]
    child(side, workload, int(threads), first_step="--first-step" in flags)
