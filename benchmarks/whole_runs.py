"""Whole processes of launch.py: several runs at once against one at a time, and a bucket against a local disk.

    python benchmarks/whole_runs.py jobs --out jobs.json
    python benchmarks/whole_runs.py bucket --data DIR --out bucket.json      (DIR holds the prepared cifar10)

Sides take turns, A B B A: what comes second may be slower. `jobs`: the main job with `--jobs 1` and `--jobs 2`; in each
turn first with an empty cache of compiled programs and then, in a new workdir, with the cache that this filled.
`bucket`: one run of CIFAR-10's preset, shortened, with its workdir on the local disk and in a bucket of an emulator on
this machine. What stands behind `--` is passed on to launch.py. A ratio is of one round, above 1 where the side named
first is faster. README.md beside this file says what is measured and what disturbs it.
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import store_servers  # noqa: E402
from compare_pytorch import quartiles  # noqa: E402

from squeezenet_jax.runs.directory import RunDirectory  # noqa: E402
from squeezenet_jax.system import cores, storage  # noqa: E402

MAIN_JOB = ("--config", "experiments/bypass.py")
RUN = "bypass=none,seed=0"
CIFAR_10 = ("--config", "experiments/bypass.py:cifar10", "--only", RUN)
WARM_UP = 0.2  # of the epochs, as in the preset

Turn = dict[str, Any]  # what one process of one side gave
Ratios = dict[str, float]  # of one round


def parse(argv: list[str]) -> argparse.Namespace:
    ours, passed_on = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("jobs", "bucket"))
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: %(default)s)")
    parser.add_argument("--data", metavar="DIR", help="of bucket: where `prepare --name cifar10` put its output")
    parser.add_argument("--epochs", type=float, default=1.0, help="of bucket (default: %(default)s)")
    parser.add_argument("--scheme", choices=("gs", "s3"), default="s3", help="of bucket (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write every turn, as JSON")
    args = parser.parse_args(ours)
    if args.what == "bucket" and not args.data:
        parser.error("bucket needs --data")
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    args.passed_on = passed_on
    return args


def launch(arguments: Iterable[str], workdir: str, cache: Path) -> Turn:
    """Runs launch.py to its end, as a person would who has set nothing but the cache."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    command = [sys.executable, "launch.py", *arguments, "--workdir", workdir]
    load, began = os.getloadavg()[0], time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        said = done.stdout[-2000:] + done.stderr[-2000:]
        sys.exit(f"error: {' '.join(command)} ended with {done.returncode}:\n{said}")
    return {"seconds": seconds, "load_before": load}


def steps_per_second(run: Path) -> float:
    """Of all the log's windows but the first, which has the compilation, by the images per second that it states."""
    lines = [record for record in RunDirectory(run).read_metrics() if record["split"] == "train"]
    if len(lines) < 2:
        sys.exit(f"error: the log of {run.name} has {len(lines)} lines of training; more epochs are needed")
    batch = RunDirectory(run).read_description()["settings"]["train"]["batch_size"]
    steps = [line["step"] - before["step"] for before, line in itertools.pairwise(lines)]
    seconds = sum(n * batch / line["images_per_second"] for n, line in zip(steps, lines[1:], strict=True))
    return sum(steps) / seconds


def measure_jobs(args: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Turn]], list[Ratios]]:
    rounds, ratios = [], []
    for number in range(args.rounds):
        turns: dict[str, Turn] = {}
        for jobs in in_turn((1, args.jobs), number):
            place = folder / f"{number}-{jobs}"
            for when in ("nothing compiled", "compiled before"):
                side = f"--jobs {jobs}, {when}"
                arguments = (*MAIN_JOB, "--jobs", str(jobs), *args.passed_on)
                turns[side] = launch(arguments, str(place / when.replace(" ", "-")), place / "cache")
                tell(number, side, turns[side])
        rounds.append(turns)
        ratios.append(
            {
                f"{when}: --jobs {args.jobs} against 1": turns[f"--jobs 1, {when}"]["seconds"]
                / turns[f"--jobs {args.jobs}, {when}"]["seconds"]
                for when in ("nothing compiled", "compiled before")
            }
        )
    return rounds, ratios


def measure_bucket(args: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Turn]], list[Ratios]]:
    cache = folder / "cache"
    arguments = [*CIFAR_10, f"--config.data.dir={Path(args.data).expanduser().absolute()}"]
    warmup = WARM_UP * args.epochs
    arguments += [f"--config.train.epochs={args.epochs}", f"--config.optimizer.warmup_epochs={warmup}", *args.passed_on]
    tell(-1, "local disk, to fill the cache", launch(arguments, str(folder / "first"), cache))
    rounds, ratios = [], []
    with store_servers.reached(args.scheme, folder / "store") as store:
        for number in range(args.rounds):
            turns: dict[str, Turn] = {}
            sides = (("local disk", str(folder / f"local-{number}")), ("bucket", f"{store.root}/bucket-{number}"))
            for side, place in in_turn(sides, number):
                before = cpu_seconds(store.pid)
                turn = launch(arguments, place, cache)
                with contextlib.suppress(TypeError):  # no /proc
                    turn["cpu_seconds_of_the_emulator"] = cpu_seconds(store.pid) - before
                workdir = storage.expand(place)
                if storage.is_remote(workdir):
                    storage.fetch(workdir)
                turn["steps_per_second"] = steps_per_second(workdir / RUN)
                tell(number, side, turn)
                turns[side] = turn
            local, bucket = turns["local disk"], turns["bucket"]
            rounds.append(turns)
            ratios.append(
                {
                    "steps per second, bucket against local disk": bucket["steps_per_second"]
                    / local["steps_per_second"],
                    "whole process, bucket against local disk": local["seconds"] / bucket["seconds"],
                }
            )
    return rounds, ratios


def in_turn(sides: Sequence[Any], number: int) -> Sequence[Any]:
    return sides[::-1] if number % 2 else sides


def cpu_seconds(pid: int) -> Any:
    """That a process has used so far; None where no /proc tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tell(number: int, side: str, turn: Turn) -> None:
    print(f"round {number + 1}: {side}: " + ", ".join(f"{k} {v:.2f}" for k, v in turn.items()), flush=True)


def main(argv: list[str]) -> None:
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        rounds, ratios = (measure_jobs if args.what == "jobs" else measure_bucket)(args, Path(folder))
    summary = {name: quartiles([one[name] for one in ratios]) for name in ratios[0]}
    for name, (low, median, high) in summary.items():
        print(f"{name}: {median:.3f} [{low:.3f}, {high:.3f}], {len(rounds)} rounds")
    if args.out:
        machine = {"cores": cores.cores(), "machine": platform.machine(), "system": platform.platform()}
        machine["python"] = platform.python_version()
        machine |= {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")}
        found = {"command": argv, "machine": machine, "rounds": rounds, "ratios": ratios}
        found["summary"] = {n: dict(zip(("low", "median", "high"), q, strict=True)) for n, q in summary.items()}
        args.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
