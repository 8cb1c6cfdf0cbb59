"""Speed, start and memory beside PyTorch: the same network, batch and image size, taking turns on the same cores.

    python benchmarks/compare_pytorch.py [--only train_v1.1_224_b16,start] [--out FILE]

(needs benchmarks/requirements.txt.) Each side is a process that stays alive and waits while the other one works, so
that neither its threads nor its memory disturb the other's. In a turn, a call or two to warm up and then timed ones.
Where a process happens to get its memory can change its speed by a tenth, so there are several, one after another.
Ours is the step that `train.py` runs and the forward pass that `predict` runs; PyTorch's is in `pytorch_squeezenet.py`,
by default in eager mode on channels_last tensors. `--torch channels_last,contiguous,compile` adds others, and
`channels_last+tuned_malloc` gives it the setting of malloc that launch.py makes for itself.
Before anything is timed, both must compute the same logits from the same weights, and the same weights after three
steps without dropout.

    train_NETWORK_SIZE_bBATCH   uint8 batch to updated weights, float32: normalisation, forward with dropout, cross
                                entropy, backward, SGD with momentum and weight decay. The host waits once per turn.
    infer_NETWORK_SIZE_bBATCH   float32 NumPy images to NumPy logits, each call waited for
    start                       fresh process to the end of its first training step (main job's network)
    main_job                    `launch.py --config experiments/bypass.py --only bypass=none,seed=0`, a whole process;
                                PyTorch's in channels_last, with the same images, batches and recipe
    limits                      large matrix products and copies: what the cores and the memory can do

NETWORK is v1.0, v1.1 (torchvision's borders) or small (v1.0 with the small stem). A line of PyTorch's ends with speed:
its time over ours in the same round, above 1 where ours is faster, as the median of the rounds and its quartiles, and
the median by CPU time; twice where ours is there twice. CPU time is of all threads; a neighbour's load changes it less
than wall time. Rounds in which other processes used too many cores do not count.
Memory is the process's largest resident set.
"""

import argparse
import importlib.metadata
import importlib.util
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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from contenders import CHECKS, COPIED, MAIN_JOB, MATRIX, OURS, TUNED_MALLOC, WITHOUT, is_ours

from squeezenet_jax.system import malloc

ROOT = Path(__file__).parents[1]
TIMED = (
    *("train_v1.0_224_b16", "train_v1.0_224_b32", "train_v1.1_224_b16", "train_v1.1_224_b32"),
    *("train_small_32_b256", "train_small_16_b32"),
    *("infer_v1.0_224_b1", "infer_v1.0_224_b32", "infer_v1.1_224_b1", "infer_v1.1_224_b32"),
)
OTHERS = ("start", "main_job", "limits")
TURN_SECONDS = 1.5  # of timed calls, roughly
VERSIONS = ("torch", "jax", "jaxlib", "flax", "optax", "numpy")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME,...", help=f"some of: {', '.join((*TIMED, *OTHERS))}")
    parser.add_argument("--torch", default="channels_last", metavar="FORMAT,...", help="default: %(default)s")
    parser.add_argument("--launches", type=int, default=3, help="processes of each side (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each process (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of each side (default: %(default)s)")
    parser.add_argument(
        "--quiet", type=float, default=0.2, help="drop rounds in which others used more cores (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write every turn and the versions to FILE")
    args = parser.parse_args(argv)
    args.names = args.only.split(",") if args.only else [*TIMED, *OTHERS]
    check_names(parser, args.names, TIMED, OTHERS)
    return args


def check_names(
    parser: argparse.ArgumentParser, names: Sequence[str], timed: Sequence[str], others: Sequence[str] = ()
) -> None:
    for name in names:
        if name not in others and not re.fullmatch(r"(train|infer)_(v1\.0|v1\.1|small)_\d+_b\d+", name):
            parser.error(f"--only: {name} is not one of {', '.join((*timed, *others))}, or of their kind")


def contender(side: str, workload: str, threads: int) -> list[str]:
    return [sys.executable, str(ROOT / "benchmarks/contenders.py"), side, workload, str(threads)]


def side_environment(side: str) -> dict[str, str]:
    tuned = is_ours(side) or side.endswith(TUNED_MALLOC)
    return dict(os.environ) | (malloc.TUNABLES if tuned else {})


class Child:
    """One side of one workload, as a process that waits for requests."""

    def __init__(self, side: str, name: str, threads: int) -> None:
        pipe, environment = subprocess.PIPE, side_environment(side)
        command = contender(side, name, threads)
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
    for name in CHECKS:
        with ExitStack() as stack:
            children = [stack.enter_context(Child(side, name, threads)) for side in sides]
            expected, *others = (child.ask("train", 3) for child in children)
            for other, (layer, value) in itertools.product(others, expected.items()):
                np.testing.assert_allclose(other[layer], value, rtol=1e-4, atol=1e-5, err_msg=f"{name}: {layer}")
    print("equal: logits of", *dict.fromkeys(names), "and the weights after three steps")


def measure(name: str, sides: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Turns of every side, and its largest memory, from `args.launches` processes of each side, one after another.

    In a launch at most three times as many rounds as are wanted are tried.
    """
    turns: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    memory = dict.fromkeys(sides, 0)
    calls, tried, others_cores = [], 0, []
    for launch in range(args.launches):
        with ExitStack() as stack:
            children = {side: stack.enter_context(Child(side, name, args.threads)) for side in sides}
            seconds = {side: child.ask("prepare") for side, child in children.items()}
            calls.append(max(1, min(200, round(TURN_SECONDS / min(seconds.values())))))
            kept, last = len(others_cores), tried + 3 * args.rounds
            while len(others_cores) < kept + args.rounds and tried < last:
                tried += 1
                order = sides if tried % 2 else sides[::-1]
                found = {side: children[side].ask("turn", calls[-1]) | {"launch": launch} for side in order}
                others = max(turn.pop("others") for turn in found.values())
                if others <= args.quiet:
                    others_cores.append(others)
                    for side in sides:
                        turns[side].append(found[side])
            for side, child in children.items():
                memory[side] = max(memory[side], child.ask("memory"))
        if len(others_cores) == kept:
            sys.exit(f"{name}: other processes used more than {args.quiet} cores in each of {3 * args.rounds} rounds")
    return {"calls": calls, "turns": turns, "memory": memory, "tried": tried, "others_cores": others_cores}


def first_steps(sides: list[str], launches: int, threads: int) -> dict[str, Any]:
    """Fresh processes; ours with an empty and with a filled folder of compiled programs."""
    turns: dict[str, list[dict[str, float]]] = {}

    def start(side: str, label: str, cache: str) -> None:
        command = [*contender(side, "start", threads), "--first-step"]
        turns.setdefault(label, []).append(run_process(command, cache, side_environment(side)))

    for _ in range(launches):
        with tempfile.TemporaryDirectory() as cache:
            start(OURS, OURS, cache)
            start(OURS, f"{OURS}, programs compiled before", cache)
            for side in sides[1:]:
                start(side, side, cache)
    return {"calls": [1], "turns": turns, "memory": {}}


def main_jobs(sides: list[str], launches: int) -> dict[str, Any]:
    turns: dict[str, list[dict[str, float]]] = {}
    for _ in range(launches):
        with tempfile.TemporaryDirectory() as folder:
            launch = [sys.executable, "launch.py", "--config", "experiments/bypass.py", "--only", MAIN_JOB, "--workdir"]
            jobs = [
                (OURS, [*launch, f"{folder}/first"]),
                (f"{OURS}, programs compiled before", [*launch, f"{folder}/second"]),
            ]
            theirs = [sys.executable, "benchmarks/pytorch_squeezenet.py", "main-job"]
            jobs += [(side, theirs) for side in sides if side.removesuffix(TUNED_MALLOC) == "channels_last"]
            for label, command in jobs:
                # launch.py makes this setting for itself.
                environment = dict(os.environ) if label.startswith(OURS) else side_environment(label)
                turn = run_process(command, f"{folder}/cache", environment)
                turns.setdefault(label, []).append(turn)
    return {"calls": [1], "turns": turns, "memory": {}}


def run_process(command: list[str], cache: str, environment: dict[str, str]) -> dict[str, float]:
    environment = environment | {"JAX_COMPILATION_CACHE_DIR": cache}
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    user = after.children_user - before.children_user
    return {"wall": wall, "user": user, "system": after.children_system - before.children_system}


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values


def summarise(name: str, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row per side; on the others' rows how many times as fast ours is, by wall time and by CPU time."""
    turns, memory = result["turns"], result["memory"]
    walls = {side: [turn["wall"] for turn in own] for side, own in turns.items()}
    cpus = {side: [turn["user"] + turn["system"] for turn in own] for side, own in turns.items()}
    ours = [side for side in turns if side.startswith(OURS) and not side.startswith(WITHOUT)]
    for side, own in turns.items():
        row = {"workload": name, "side": side, "wall_ms": [1e3 * x for x in quartiles(walls[side])]}
        row["cpu_ms"] = 1e3 * statistics.median(cpus[side])
        system = [turn["system"] for turn in own]
        row["system_share"] = statistics.median(system) / statistics.median(cpus[side])
        row["memory_mb"] = memory[side] / 1e6 if side in memory else None
        if side not in ours:
            row["speed"] = {mine: ratios(walls[side], walls[mine]) for mine in ours}
            row["cpu_speed"] = {mine: ratios(cpus[side], cpus[mine]) for mine in ours}
        yield row


def ratios(theirs: list[float], ours: list[float]) -> list[float]:
    """Quartiles of their time over ours, round by round."""
    return quartiles([b / a for a, b in zip(ours, theirs, strict=True)])


def print_rows(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        low, median, high = row["wall_ms"]
        times = f"{median:>10.1f} [{low:.1f}, {high:.1f}]"
        memory = f"{row['memory_mb']:.0f} MB" if row["memory_mb"] else ""
        line = f"{row['workload']:<20}{row['side']:<32}{times:<34}{row['cpu_ms']:>10.1f}"
        line += f"{100 * row['system_share']:>5.0f} %{memory:>10}"
        for mine, speed in row.get("speed", {}).items():
            line += "   {1:.2f} [{0:.2f}, {2:.2f}]".format(*speed) + f" {row['cpu_speed'][mine][1]:.2f}"
        print(line, flush=True)


def prepare(threads: int) -> None:
    """Binds this process and all that it starts to so many cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ.pop("GLIBC_TUNABLES", None)  # each side gets its own


def print_head(what: str) -> None:
    heads = f"{'wall ms, quartiles':>20}{'':>14}{'CPU ms':>10}{'system':>7}{'memory':>10}"
    print(f"\n{'workload':<20}{'side':<32}{heads}   {what} [quartiles], by CPU time")


def main() -> None:
    args = parse()
    prepare(args.threads)
    sides = [OURS, *args.torch.split(",")]
    networks = {name.split("_")[1]: f"infer_{'_'.join(name.split('_')[1:3])}_b2" for name in args.names if "_b" in name}
    check_equal(list(networks.values()), sides, args.threads)
    print_head("speed")
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
            results[name] = first_steps(sides, args.launches, args.threads)
        elif name == "main_job":
            results[name] = main_jobs(sides, args.launches)
        else:
            results[name] = measure(name, sides, args)
        if name != "limits":
            rows += (new := list(summarise(name, results[name])))
            print_rows(new)
        if args.out:  # after each workload, so that a run that is cut short leaves what it has
            write(args, rows, results)


def write(args: argparse.Namespace, rows: list[dict[str, Any]], results: dict[str, Any]) -> None:
    report = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": args.threads,
        "launches": args.launches,
        "rounds": args.rounds,
        "quiet": args.quiet,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in VERSIONS if importlib.util.find_spec(name)},
        "rows": rows,
        "results": results,
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
