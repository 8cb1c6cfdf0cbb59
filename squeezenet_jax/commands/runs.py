"""runs DIR: the workdirs in a folder and how each of their runs stands. Imports no jax, so it starts at once."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from squeezenet_jax.system.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from squeezenet_jax.experiment.overview import Overview, Standing

STYLES = {"done": "green", "running": "cyan", "failed": "red", "killed": "red", "hung": "red", "diverged": "yellow"}
STYLES |= {"stalled": "yellow", "not started": "dim"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Lists the workdirs at and below a folder, and of each its runs: status, epoch, newest held-out accuracy, and "
        "how long ago the run last wrote anything. It only reads, and may look on while runs run, on any machine that "
        "sees the folder."
    )
    parser.add_argument("dir", metavar="DIR", help="a workdir, a folder of workdirs, or either in a bucket")
    parser.add_argument("--follow", action="store_true", help="look again and again until every run has ended")
    parser.add_argument("--every", metavar="SECONDS", type=float, help="between two looks (default: 2; a bucket: 20)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from squeezenet_jax.experiment import overview
    from squeezenet_jax.system import storage, terminal

    place = storage.expand(args.dir, "DIR")
    every = (20.0 if storage.is_remote(place) else 2.0) if args.every is None else args.every
    if not 0 < every < float("inf"):
        raise UserError(f"--every: {every:g} is not allowed; it must be above 0 and finite")
    if args.every is not None and not args.follow:
        raise UserError("--every: is for --follow only")
    found = overview.look(place)
    if not found:
        raise UserError(f"DIR: {place} holds no workdir of launch.py")
    console = Console(width=terminal.columns(sys.stdout))
    if not args.follow:
        _print(found, console)
        return 0

    def looks() -> Iterator[Sequence["Overview"]]:
        latest = found
        yield latest
        while not all(each.has_ended for one in latest for each in one.runs):
            time.sleep(every)
            latest = overview.look(place)
            yield latest

    (_follow_on_terminal if console.is_terminal else _follow_in_lines)(looks(), console)
    return 0


def _follow_on_terminal(looks: Iterator[Sequence["Overview"]], console: "Console") -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:
        for found in looks:
            live.update(Group(*(Text(part) if isinstance(part, str) else part for part in _parts(found))), refresh=True)


def _follow_in_lines(looks: Iterator[Sequence["Overview"]], console: "Console") -> None:
    """A table first; then a line for each run of which something but its age is new."""
    shown = next(looks)
    _print(shown, console)
    for found in looks:
        before = {one.path / each.name: each for one in shown for each in one.runs}
        for one in found:
            for each in one.runs:
                if _cells(each, 0.0)[1:-2] != _cells(before.get(one.path / each.name, each), 0.0)[1:-2]:
                    words = [cell for cell in _cells(each, time.time())[1:-1] if cell]
                    console.print(f"{one.path / each.name}: {', '.join(words)}", markup=False, soft_wrap=True)
        sys.stdout.flush()
        shown = found


def _print(found: Sequence["Overview"], console: "Console") -> None:
    for part in _parts(found):
        console.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str))


def _parts(found: Sequence["Overview"]) -> "list[str | Table]":
    """A line and a table for each workdir."""

    from squeezenet_jax.system import storage

    parts: list[str | Table] = []
    for one in found:
        ended = sum(each.has_ended for each in one.runs)
        count = f", {ended} of {len(one.runs)} ended" if one.runs else ""
        title = f"{storage.named(str(one.path))}: {one.title}{count}"
        parts += [title, _table(one, time.time())] if one.runs else [title]
    return parts


def _table(one: "Overview", now: float) -> "Table":
    from rich.table import Column, Table
    from rich.text import Text

    right = [Column(name, justify="right") for name in ("epoch", "loss", "top-1", "images/s", "last wrote")]
    table = Table(Column("run", overflow="fold"), "status", *right, "")
    for each in one.runs:
        name, status, *others = _cells(each, now)
        table.add_row(Text(name), Text(status, style=STYLES.get(status, "")), *map(Text, others))
    return table


def _cells(each: "Standing", now: float) -> list[str]:
    """Of a run's row; the last but one is how long ago it wrote, the last what it said as it ended."""
    lines = each.message.splitlines()
    return [
        each.name,
        each.status,
        "" if each.epoch is None else f"{each.epoch:.3g}" + (f"/{each.epochs:g}" if each.epochs else ""),
        "" if each.loss is None else f"{each.loss:.4f}",
        "" if each.top1 is None else f"{100 * each.top1:.2f} %",
        "" if each.images_per_second is None else f"{each.images_per_second:,.0f}",
        "" if each.written is None else f"{age(max(now - each.written, 0.0))} ago",
        lines[0] if lines else "",
    ]


def age(seconds: float) -> str:
    """In its largest unit, rounded down.

    >>> age(59.9), age(3599), age(86399), age(200_000)
    ('59 s', '59 min', '23 h', '2 d')
    """
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
