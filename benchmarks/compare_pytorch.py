"""Speed, start and memory beside PyTorch: the same network, batch and image size, taking turns on the same cores.

    python benchmarks/compare_pytorch.py [--only train_v1.1_224_b16,start] [--out FILE]

(needs benchmarks/requirements.txt.) Each side is a process that stays alive and waits while the other one works, so
that neither its threads nor its memory disturb the other's. In a turn, a call or two to warm up and then timed ones.
Ours is the step that `train.py` runs and the forward pass that `predict` runs; PyTorch's is in `pytorch_squeezenet.py`,
by default in eager mode on channels_last tensors. `--torch channels_last,contiguous,compile` adds others; the one with
the best median counts. `channels_last+large_pages` gives it the setting of malloc that launch.py makes for itself.
Before anything is timed, both must compute the same logits from the same weights, and the same weights after three
steps without dropout.

    train_NETWORK_SIZE_bBATCH   uint8 batch to updated weights, float32: normalisation, forward with dropout, cross
                                entropy, backward, SGD with momentum and weight decay. The host waits once per turn.
    infer_NETWORK_SIZE_bBATCH   float32 NumPy images to NumPy logits, each call waited for
    start                       fresh process to the end of its first training step (main job's network)
    main_job                    `launch.py --config experiments/bypass.py --only bypass=none,seed=0`, a whole process
    limits                      large matrix products and copies: what the cores and the memory can do

NETWORK is v1.0, v1.1 (torchvision's borders) or small (v1.0 with the small stem). Speed is PyTorch's time over ours in
the same round, above 1 where ours is faster: the median of the rounds and its quartiles. CPU time is of all threads; a
neighbour's load changes it less than wall time. Rounds in which other processes used too many cores do not count.
Memory is the process's largest resident set.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments import base, bypass
from squeezenet_jax import memory
from squeezenet_jax import settings as settings_module
from squeezenet_jax.settings import Settings
from squeezenet_jax.sweep import flatten, plan, unflatten
from squeezenet_jax.weights.bundle import parameter_shapes

ROOT = Path(__file__).parents[1]
OURS = "ours"
LARGE_PAGES = "+large_pages"  # of a side of PyTorch's: with the setting of malloc that launch.py makes for itself
MATRIX, COPIED = 3072, 1 << 26  # of `limits`: side of a matrix, floats
TIMED = (
    *("train_v1.0_224_b16", "train_v1.0_224_b32", "train_v1.1_224_b16", "train_v1.1_224_b32", "train_small_32_b256"),
    *("infer_v1.0_224_b1", "infer_v1.0_224_b32", "infer_v1.1_224_b1", "infer_v1.1_224_b32"),
)
OTHERS = ("start", "main_job", "limits")
CHECK = "train_small_16_b8"  # trained without dropout on both sides
BUSY_IS_KNOWN = sys.platform == "linux"
TURN_SECONDS = 1.5  # of timed calls, roughly
VERSIONS = ("torch", "jax", "jaxlib", "flax", "optax", "numpy")
Params = dict[str, np.ndarray]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME,...", help=f"some of: {', '.join((*TIMED, *OTHERS))}")
    parser.add_argument("--torch", default="channels_last", metavar="FORMAT,...", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each side (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of each side (default: %(default)s)")
    parser.add_argument(
        "--quiet", type=float, default=0.2, help="drop rounds in which others used more cores (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write every turn and the versions to FILE")
    parser.add_argument("--child", metavar="SIDE", help=argparse.SUPPRESS)
    parser.add_argument("--first-step", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.names = args.only.split(",") if args.only else [*TIMED, *OTHERS]
    for name in args.names:
        if name not in OTHERS and not re.fullmatch(r"(train|infer)_(v1\.0|v1\.1|small)_\d+_b\d+", name):
            parser.error(f"--only: {name} is not one of {', '.join((*TIMED, *OTHERS))}, or of their kind")
    return args


# -- what both sides compute -----------------------------------------------------------------------------------------


def workload_settings(name: str) -> Settings:
    _, network, size, batch = name.split("_")
    small = network == "small"
    changes = {
        "model.version": "v1.0" if small else network,
        "model.stem": "small" if small else "card",
        "model.geometry": "same" if small else "torchvision",
        "model.width": 0.5 if small else 1.0,
        "model.kernel_init": "he_uniform",
        "model.dropout": 0.0 if name == CHECK else 0.5,
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
    return settings_module.from_config(unflatten(flatten(base.get_config().to_dict()) | changes))


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


# -- the two sides, each in its own process --------------------------------------------------------------------------


class Ours:
    def __init__(self, settings: Settings) -> None:
        import jax

        from squeezenet_jax import devices

        self.jax, self.settings, self.mesh = jax, settings, devices.data_mesh()

    def nested(self, params: Params) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for name, value in params.items():
            *path, last = name.split("/")
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[last] = value
        return tree

    def prepare_training(self, params: Params) -> Callable[[int], float]:
        """The function that takes so many steps and returns the last one's mean loss."""
        from squeezenet_jax import devices
        from squeezenet_jax.steps import compile_steps

        steps = compile_steps(self.settings, 10**6, 1e3, self.mesh)
        key = devices.run_key(0, self.mesh)
        batches = itertools.cycle(draw_batches(self.settings))
        self.state = steps.begin(devices.replicate(self.nested(params), self.mesh))

        def take(count: int) -> float:
            for _ in range(count):
                self.state, tally = steps.train(self.state, devices.put_batch(next(batches), self.mesh), key)
            self.jax.block_until_ready(self.state)
            return float(tally["loss"]) / float(tally["count"])

        return take

    def params(self) -> Params:
        flat, _ = self.jax.tree_util.tree_flatten_with_path(self.state.params)
        return {"/".join(part.key for part in path): np.asarray(value) for path, value in flat}

    def prepare_inference(self, params: Params) -> Callable[[np.ndarray], np.ndarray]:
        import dataclasses

        from squeezenet_jax.commands.inference import compile_forward
        from squeezenet_jax.weights.bundle import Weights, preprocessing_named

        data, model = self.settings.data, self.settings.model
        preprocessing = preprocessing_named("torchvision")
        preprocessing = dataclasses.replace(preprocessing, resize=data.image_size, crop=data.image_size)
        arch, nested = model.architecture(), self.nested(params)
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


def make_side(side: str, settings: Settings, threads: int) -> "Ours | Theirs":
    return Ours(settings) if side == OURS else Theirs(settings, side.removesuffix(LARGE_PAGES), threads)


def child(side: str, name: str, threads: int, first_step: bool) -> None:
    """Answers each line of its input (JSON) with a line (JSON): what is asked of one workload."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries that print must not talk into the answers
    if first_step:
        from squeezenet_jax import devices

        if side == OURS:
            devices.keep_compiled_programs()
        (run,) = main_job_plan().only("bypass=none,seed=0").runs
        settings = run.settings
        make_side(side, settings, threads).prepare_training(draw_params(settings))(1)
        print(json.dumps("done"), file=answers)
        return
    settings = workload_settings(CHECK if name == "limits" else name)
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


# -- the parent ------------------------------------------------------------------------------------------------------


def side_environment(side: str) -> dict[str, str]:
    large = side == OURS or side.endswith(LARGE_PAGES)
    return dict(os.environ) | (memory.TUNABLES if large else {})


class Child:
    """One side of one workload, as a process that waits for requests."""

    def __init__(self, side: str, name: str, threads: int) -> None:
        command = [sys.executable, __file__, "--child", side, "--only", name, "--threads", str(threads)]
        pipe, environment = subprocess.PIPE, side_environment(side)
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def ask(self, do: str, argument: int | None = None) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps({"do": do, "argument": argument}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"the process failed that was asked to: {do}")
        return json.loads(answer)

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def check_equal(names: list[str], sides: list[str], threads: int) -> None:
    """Raises where the sides do not compute the same: logits of each network, weights after three steps."""
    for name in names:
        with ExitStack() as stack:
            children = [stack.enter_context(Child(side, name, threads)) for side in sides]
            expected, *others = (np.array(child.ask("logits")) for child in children)
            assert expected.std() > 1e-3, "logits that are all the same prove nothing"
            for logits in others:
                np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=name)
    with ExitStack() as stack:
        children = [stack.enter_context(Child(side, CHECK, threads)) for side in sides]
        trained, *others = (child.ask("train", 3) for child in children)
        for other, (layer, value) in itertools.product(others, trained.items()):
            np.testing.assert_allclose(other[layer], value, rtol=1e-4, atol=1e-5, err_msg=layer)
    print("equal: logits of", *dict.fromkeys(names), "and the weights after three steps")


def busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used; Linux only."""
    fields = Path("/proc/stat").read_text().split()
    return sum(int(fields[place]) for place in (1, 2, 3)) / os.sysconf("SC_CLK_TCK")


def measure(name: str, sides: list[str], rounds: int, threads: int, quiet: float) -> dict[str, Any]:
    """Turns of every side, and its memory. At most three times as many rounds as are wanted are tried."""
    with ExitStack() as stack:
        children = {side: stack.enter_context(Child(side, name, threads)) for side in sides}
        seconds = {side: child.ask("prepare") for side, child in children.items()}
        calls = max(1, min(200, round(TURN_SECONDS / min(seconds.values()))))
        turns: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        tried, others_cores = 0, []
        while len(others_cores) < rounds and tried < 3 * rounds:
            tried += 1
            order = sides if tried % 2 else sides[::-1]
            others, found = 0.0, {}
            for side in order:
                found[side] = turn = children[side].ask("turn", calls)
                others = max(others, turn.pop("others"))
            if others <= quiet:
                others_cores.append(others)
                for side in sides:
                    turns[side].append(found[side])
        if not others_cores:
            sys.exit(f"{name}: other processes used more than {quiet} cores in each of {tried} rounds")
        memory = {side: child.ask("memory") for side, child in children.items()}
    return {"calls": calls, "turns": turns, "memory": memory, "tried": tried, "others_cores": others_cores}


def first_steps(sides: list[str], rounds: int, threads: int) -> dict[str, Any]:
    """Fresh processes; ours with an empty and with a filled folder of compiled programs."""
    turns: dict[str, list[dict[str, float]]] = {}

    def start(side: str, label: str, cache: str) -> None:
        command = [sys.executable, __file__, "--child", side, "--only", "start", "--first-step"]
        turn = run_process([*command, "--threads", str(threads)], cache, side_environment(side))
        turns.setdefault(label, []).append(turn)

    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            start(OURS, OURS, cache)
            start(OURS, f"{OURS}, programs compiled before", cache)
            for side in sides[1:]:
                start(side, side, cache)
    return {"calls": 1, "turns": turns, "memory": {}}


def main_jobs(rounds: int) -> dict[str, Any]:
    turns: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            command = ["--config", "experiments/bypass.py", "--only", "bypass=none,seed=0", "--workdir"]
            ours = [sys.executable, "launch.py", *command]
            theirs = [sys.executable, "benchmarks/pytorch_squeezenet.py", "main-job"]
            for label, line in (
                (OURS, [*ours, f"{folder}/first"]),
                (f"{OURS}, programs compiled before", [*ours, f"{folder}/second"]),
                ("channels_last", theirs),
            ):
                turns.setdefault(label, []).append(run_process(line, f"{folder}/cache", dict(os.environ)))
    return {"calls": 1, "turns": turns, "memory": {}}


def run_process(command: list[str], cache: str, environment: dict[str, str]) -> dict[str, float]:
    environment = environment | {"JAX_COMPILATION_CACHE_DIR": cache}
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    user = after.children_user - before.children_user
    return {"wall": wall, "user": user, "system": after.children_system - before.children_system}


def main_job_plan() -> Any:
    return plan(bypass, base.PRESET, bypass.get_config().to_dict(), ())


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values


def summarise(name: str, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row per side; on our rows the speed, against the best of the others."""
    turns, memory = result["turns"], result["memory"]
    walls = {side: [turn["wall"] for turn in own] for side, own in turns.items()}
    cpus = {side: [turn["user"] + turn["system"] for turn in own] for side, own in turns.items()}
    other = min((side for side in turns if not side.startswith(OURS)), key=lambda side: statistics.median(walls[side]))
    for side, own in turns.items():
        row = {"workload": name, "side": side, "wall_ms": [1e3 * x for x in quartiles(walls[side])]}
        row["cpu_ms"] = 1e3 * statistics.median(cpus[side])
        system = [turn["system"] for turn in own]
        row["system_share"] = statistics.median(system) / statistics.median(cpus[side])
        row["memory_mb"] = memory[side] / 1e6 if side in memory else None
        if side.startswith(OURS):
            for key, values in (("speed", walls), ("cpu_speed", cpus)):
                row[key] = quartiles([b / a for a, b in zip(values[side], values[other], strict=True)])
        yield row


def print_rows(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        low, median, high = row["wall_ms"]
        times = f"{median:>10.1f} [{low:.1f}, {high:.1f}]"
        memory = f"{row['memory_mb']:.0f} MB" if row["memory_mb"] else ""
        line = f"{row['workload']:<20}{row['side']:<32}{times:<34}{row['cpu_ms']:>10.1f}"
        line += f"{100 * row['system_share']:>5.0f} %{memory:>10}"
        if "speed" in row:
            line += "   {1:.2f} [{0:.2f}, {2:.2f}]".format(*row["speed"]) + f"   {row['cpu_speed'][1]:.2f}"
        print(line, flush=True)


def main() -> None:
    args = parse()
    if args.child:
        child(args.child, args.names[0], args.threads, args.first_step)
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    os.environ.pop("GLIBC_TUNABLES", None)  # each side gets its own
    sides = [OURS, *args.torch.split(",")]
    networks = {name.split("_")[1]: f"infer_{'_'.join(name.split('_')[1:3])}_b2" for name in args.names if "_b" in name}
    check_equal(list(networks.values()), sides, args.threads)
    heads = f"{'wall ms, quartiles':>20}{'':>14}{'CPU ms':>10}{'system':>7}{'memory':>10}"
    print(f"\n{'workload':<20}{'side':<32}{heads}   speed [quartiles]   by CPU time")
    rows, results = [], {}
    for name in args.names:
        if name == "limits":
            results[name] = {}
            for side in sides[:2]:
                with Child(side, name, args.threads) as process:
                    product, copy = process.ask("limits")
                gflops, bandwidth = 2e-9 * MATRIX**3 / product, 8e-9 * COPIED / copy
                results[name][side] = {"gflops": gflops, "gigabytes_per_second": bandwidth}
                print(
                    f"limits, {side}: {gflops:.0f} GFLOP/s (2 per multiply-add), {bandwidth:.1f} GB/s read and written"
                )
        elif name == "start":
            results[name] = first_steps(sides, min(args.rounds, 5), args.threads)
        elif name == "main_job":
            results[name] = main_jobs(min(args.rounds, 3))
        else:
            results[name] = measure(name, sides, args.rounds, args.threads, args.quiet)
        if name != "limits":
            rows += (new := list(summarise(name, results[name])))
            print_rows(new)
        if args.out:  # after each workload, so that a run that is cut short leaves what it has
            write(args, rows, results)


def write(args: argparse.Namespace, rows: list[dict[str, Any]], results: dict[str, Any]) -> None:
    report = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": args.threads,
        "rounds": args.rounds,
        "quiet": args.quiet,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in VERSIONS},
        "rows": rows,
        "results": results,
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
