"""Looks at a run's beginning of which nothing is kept: `launch.py --signal` and `--profile`. They import jax when used.

Read next: `training/signal.py` and `training/profile.py`, which find what is printed here.
"""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from squeezenet_jax.experiment.planning import Plan
from squeezenet_jax.system import storage

MOST_EXPENSIVE = 10


def signal_tables(plan: Plan) -> Iterator[Table]:
    """For the first seed of each setting, what `training/signal.py` finds."""
    from squeezenet_jax.system import devices
    from squeezenet_jax.training import signal as start  # jax, only now

    devices.use_the_usual_numbers()
    devices.keep_compiled_programs()
    runs = {run.setting: run for run in reversed(plan.runs)}
    for run in reversed(runs.values()):
        table = Table("layer", "rms of output", "rms of gradient", title=run.name)
        for scale in start.scales(run.settings):
            table.add_row(scale.layer, f"{scale.output:.3g}", f"{scale.gradient:.3g}")
        yield table


def show_profile(plan: Plan, num_steps: int, workdir: Path, console: Console) -> None:
    """Traces steps of the plan's first run into `workdir/profile`, and prints what they cost."""
    from squeezenet_jax.system import devices
    from squeezenet_jax.training import profile as profiling  # jax, only now

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    devices.use_the_usual_numbers()
    devices.keep_compiled_programs()
    run, folder = plan.runs[0], workdir / "profile"
    found = profiling.profile(run.settings, num_steps, folder, say)
    total = sum(operation.seconds for operation in found.operations)
    table = Table("operation", "from", title=f"{run.name}: the {MOST_EXPENSIVE} most expensive operations")
    for name in ("share", "ms a step", "calls a step"):
        table.add_column(name, justify="right")
    for operation in found.operations[:MOST_EXPENSIVE]:
        per_step = 1e3 * operation.seconds / num_steps, operation.calls / num_steps
        table.add_row(
            Text(operation.name),
            Text(operation.origin),
            f"{100 * operation.seconds / total:.1f} %",
            f"{per_step[0]:.3f}",
            f"{per_step[1]:g}",
        )
    console.print(table)
    say(f"A step took {1e3 * found.seconds / num_steps:.2f} ms, with the trace being taken.")
    say(f"Waiting for input took {100 * found.input_share:.1f} % of the time.")
    for path in found.files:
        storage.saved(path)
    say(f"tensorboard --logdir {storage.named(str(folder))} (with the package xprof) shows the trace; so does")
    for path in found.files:
        if path.name.endswith(".trace.json.gz"):
            say(f"https://ui.perfetto.dev with the file {storage.named(str(path))}")
