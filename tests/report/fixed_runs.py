"""Runs with known numbers, and the comparison whose texts `before_columns/` holds."""

import io
from pathlib import Path

import rich.console

from squeezenet_jax import report
from squeezenet_jax.report import Run, compare, print_table, write

BASE, SIMPLE = "bypass=none", "bypass=simple"
TOP1 = {BASE: [0.961, 0.958, 0.967, 0.95], SIMPLE: [0.972, 0.964, 0.975, 0.966]}


def a_run(setting: str, seed: int, top1: float | None, status: str = "done", top5: float = 0.99) -> Run:
    """A run of 4 epochs; `top1` None: one without a final evaluation."""
    curve = [{"step": 10 * e, "epoch": e, "loss": 2 / e, "top1": 0.2 * e, "top5": 0.25 * e} for e in range(1, 5)]
    final = {"loss": 0.1, "top1": top1 or 0.0, "top5": top5, "count": 1000, "images_per_second": 100.0 + seed}
    overrides = {"model.bypass": setting.partition("=")[2]}
    return Run(setting, overrides, seed, status, 1_248_424, 860_000_000, None if top1 is None else final, curve, curve)


def runs_of(**statuses: str) -> list[Run]:
    """Two rows of four seeds; `simple1="diverged"` gives that run this status and takes its evaluation away."""
    found = []
    for setting, values in TOP1.items():
        for seed, top1 in enumerate(values):
            status = statuses.get(f"{setting.partition('=')[2]}{seed}", "done")
            found.append(a_run(setting, seed, top1 if status in ("done", "stalled") else None, status))
    return found


def rows_of_every_kind() -> report.Comparison:
    """A baseline; rows that are higher, unclear, of a single pair with a note, without any result; of other sizes."""
    runs = runs_of() + [a_run("bypass=none,width=2", seed, 0.9 + 0.02 * seed) for seed in range(2)]
    runs += [a_run("bypass=complex", 0, 0.97), *(a_run("bypass=complex", s, None, "diverged") for s in (1, 2))]
    runs += [Run("bypass=tiny", {"model.bypass": "tiny"}, 0, "missing", 1234, 98_765, None)]
    return compare("bypass", "digits", BASE, runs)


def every_text(comparison: report.Comparison, directory: Path) -> dict[str, str]:
    """What each of the outputs says, by its name."""
    console = rich.console.Console(width=400, file=io.StringIO(), record=True)
    write(comparison, directory)
    print_table(comparison, console)
    files = {name: (directory / f"report.{name}").read_text() for name in ("md", "html", "csv", "json")}
    return {"console": console.export_text(), **files}
