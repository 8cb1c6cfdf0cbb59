"""Runs that are really trained, in seconds."""

import json

from rich.console import Console
from tiny_settings import TINY

from experiments import base, bypass
from squeezenet_jax.experiment import planning, sweep
from squeezenet_jax.experiment.progress import Progress
from squeezenet_jax.system import nested


def trained(workdir, kind="simple", **changes):
    """The directory of a run of bypass.py, with this bypass and changes to its settings, and its final evaluation."""
    flat = planning.flatten(base.get_config("digits").to_dict()) | TINY | changes
    plan = planning.plan(bypass, "digits", nested.unflatten(flat, "."), []).only(f"bypass={kind},seed=0")
    assert sweep.run(plan, workdir, Progress(Console(quiet=True)), lambda: False)[0] in ("done", "stalled")
    run = workdir / plan.runs[0].name
    return run, [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
