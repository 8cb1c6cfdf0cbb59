"""What the first steps of a run cost, operation by operation, from a trace that XProf and Perfetto open.

The steps are those of a run, its compiled program and its input included; what they train is thrown away. Read next:
`train.py`, whose beginning this follows.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import jax

from squeezenet_jax.data.batches import TrainBatches
from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.settings import Settings
from squeezenet_jax.system import devices
from squeezenet_jax.training import train
from squeezenet_jax.training.run import open_loader, read
from squeezenet_jax.training.steps import LSUV_IMAGES, init_state

WARM_UP_STEPS = 2 * devices.IN_FLIGHT  # the first ones pay for what is done once, and fill what lies ahead
# Operations whose time is that of others, which are recorded themselves.
CONTAINERS = re.compile(r"(while|conditional|call)(\.\d+)*$")
INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"', re.MULTILINE)


class Operation(NamedTuple):
    """One operation of the compiled program, over all traced steps and devices.

    Attributes:
      name: XLA's: "fusion.12".
      origin: Where it comes from: "forward: learner/group0/fire2/squeeze1x1/conv_general_dilated"; "" if XLA made it.
      seconds: In all its calls; operations that run at the same time count with their time each.
    """

    name: str
    origin: str
    calls: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """What `profile` found."""

    steps: int
    seconds: float  # from the first traced step to the end of the last one
    input_share: float  # of them, spent on waiting for input
    operations: tuple[Operation, ...]  # the most expensive first
    files: tuple[Path, ...]  # .xplane.pb for XProf, .trace.json.gz for Perfetto


def profile(settings: Settings, num_steps: int, folder: Path, notice: Callable[[str], None]) -> Profile:
    """Traces `num_steps` steps of a run with these settings behind a warm-up, into `folder`.

    Raises `UserError` where the run cannot start.
    """
    train.check(settings)
    mesh = devices.data_mesh()
    batches, eval_batches = read(settings, mesh)
    folder.mkdir(parents=True, exist_ok=True)
    before = set(_files(folder))
    with open_loader(settings, batches, eval_batches, RunDirectory(folder), _Notices(notice)) as loader:
        steps = train.compile_for(settings, batches.steps_per_epoch, mesh)
        key = devices.run_key(settings.seed, mesh)
        first = TrainBatches(batches.source, min(batches.batch_size, LSUV_IMAGES), settings.seed).batch_at(0)
        state = init_state(settings, steps, first["image"], key, mesh)
        stream = loader.stream("train", range(WARM_UP_STEPS + num_steps))
        pace = devices.Pace()

        def take(count: int) -> None:
            nonlocal state
            for number in range(count):
                with jax.profiler.StepTraceAnnotation("train", step_num=number):
                    with jax.profiler.TraceAnnotation("wait for input"):
                        batch = next(stream)
                    state, tally = steps.train(state, devices.put_batch(batch, mesh), key)
                    pace.add(tally)
            jax.block_until_ready(state)

        take(WARM_UP_STEPS)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of every function: they would hide the rest, and slow it
        with jax.profiler.trace(str(folder), profiler_options=options):
            began, waited = perf_counter(), loader.waited
            take(num_steps)
            seconds, waited = perf_counter() - began, loader.waited - waited
    files = tuple(sorted(set(_files(folder)) - before))
    program: Any = steps.train  # as it was compiled
    origins = {name: _readable(origin) for name, origin in INSTRUCTION.findall(program.as_text())}
    traces = [jax.profiler.ProfileData.from_file(str(path)) for path in files if path.name.endswith(".xplane.pb")]
    operations = _summed((event for trace in traces for event in _events(trace)), origins)
    return Profile(num_steps, seconds, min(waited / seconds, 1.0), operations, files)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("plugins/profile/*/*") if path.is_file()]


def _events(trace: Any) -> Iterator[tuple[str, float]]:
    """(XLA's name of an operation, seconds) of each time that one ran on a device."""
    for plane in trace.planes:
        lines = list(plane.lines)
        tpu = [line for line in lines if line.name == "XLA Ops"]  # elsewhere an event says which operation it is of
        for line in tpu or lines:
            for event in line.events:
                name = event.name.partition(" = ")[0].lstrip("%") if tpu else dict(event.stats).get("hlo_op")
                if name:
                    yield str(name), event.duration_ns * 1e-9


def _summed(events: Iterator[tuple[str, float]], origins: Mapping[str, str]) -> tuple[Operation, ...]:
    calls, seconds = Counter[str](), Counter[str]()
    for name, duration in events:
        if not CONTAINERS.match(name):
            calls[name] += 1
            seconds[name] += duration  # type: ignore[assignment]  # a Counter of floats
    return tuple(Operation(name, origins.get(name, ""), calls[name], took) for name, took in seconds.most_common())


def _readable(origin: str) -> str:
    """JAX's path of an operation, without the program and the loops that all of them are in.

    >>> _readable("jit(train_step)/while/body/transpose(jvp(SqueezeNet))/fire2/squeeze1x1/dot_general")
    'backward: fire2/squeeze1x1/dot_general'
    """
    inner = re.sub(r"^(jit\([^/]*\)/)?((while|body|closed_call|checkpoint|cond)/)*", "", origin)
    way = re.match(r"(transpose\()?jvp\([^/]*\)/", inner)
    return inner if way is None else f"{'backward' if way[1] else 'forward'}: {inner[way.end() :]}"


class _Notices:
    """A reporter of which only the notices matter."""

    def __init__(self, notice: Callable[[str], None]) -> None:
        self.notice = notice

    def start(self, step: int, total_steps: int) -> None: ...

    def record(self, record: dict[str, Any]) -> None: ...
