"""report WORKDIR ...: the comparison of finished runs, from what their workdirs record. Imports no jax."""

import argparse
import sys

from squeezenet_jax.commands.arguments import path_of
from squeezenet_jax.system.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Rebuilds the report of finished runs, without their data and the experiment's file. Several workdirs of one "
        "experiment are joined: the seeds of equal settings are united, each preset is a table of its own."
    )
    parser.add_argument("workdirs", metavar="WORKDIR", nargs="+", help="what launch.py --workdir was, or a copy of it")
    parser.add_argument("--out", metavar="DIR", help="where report.html, .md, .csv and .json go (default: the WORKDIR)")
    parser.add_argument("--baseline", metavar="SETTING", default="", help="bypass=none (default: the experiment's)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import rich.console

    from squeezenet_jax import report
    from squeezenet_jax.experiment import workdirs
    from squeezenet_jax.runs.directory import fetch_runs
    from squeezenet_jax.system import storage, terminal

    if len(args.workdirs) > 1 and not args.out:
        raise UserError("--out: is missing; a report of several workdirs belongs to none of them")
    paths = [storage.expand(text, "WORKDIR") for text in args.workdirs]
    for path in paths:
        fetch_runs(path)
    out = path_of(args.out) if args.out else paths[0]
    comparisons, notes = workdirs.compare(paths, args.baseline)
    out.mkdir(parents=True, exist_ok=True)
    report.write(comparisons, out)
    console = rich.console.Console(width=terminal.columns(sys.stdout))
    for comparison in comparisons:
        report.print_table(comparison, console)
        console.print()
    for note in notes:
        print(storage.named(f"note: {note}"), file=sys.stderr)
    print(storage.named(f"Report: {out / 'report.html'}"))
    return 0
