"""How runs that run at the same time divide a machine: accelerators by their visible-device variables, cores by number.

A share must be in effect before jax starts in the process that has it. No jax here: whoever divides must not take the
devices. Read next: `worker.py`.
"""

import dataclasses
import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Literal

from squeezenet_jax.settings import Settings
from squeezenet_jax.system import cores
from squeezenet_jax.system.errors import UserError

Jobs = int | Literal["auto"]
# Chips of a process -> their shape. https://gist.github.com/skye/f82ba45d2445bb19d53545538754f9a3 by one of jax's
# authors, and jax/_src/test_multiprocess.py.
CHIP_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
TPU_PORT = 8476  # of the first process, as there
# Who reads which variable, the one that counts first. NVIDIA: CUDA C++ Programming Guide, "CUDA Environment Variables".
# AMD: ROCm, "GPU isolation techniques"; ROCR_VISIBLE_DEVICES, which comes before them, stays as the user has it.
VISIBLE = {
    "cuda": ("CUDA_VISIBLE_DEVICES",),
    "rocm": ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
    "tpu": ("TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES"),
}
NAMES = {"cuda": "GPUs", "rocm": "GPUs", "tpu": "TPU chips", "cpu": "CPU devices"}


@dataclasses.dataclass(frozen=True)
class Machine:
    """What jax finds where nothing is divided."""

    platform: str  # "cuda", "rocm", "tpu" or "cpu"
    devices: int  # GPUs or TPU chips; of a CPU, 1 or as many as JAX_NUM_CPU_DEVICES makes of it
    memory: int  # bytes of one of them, and of a CPU those of the whole machine; 0 where nobody tells
    cores: Sequence[int]  # that may be used, neighbours side by side; empty where no system tells

    @property
    def units(self) -> int:
        """How many runs can have a share: devices or, of a CPU that is one device, cores."""
        return len(self.cores) or cores.cores() if self._is_one_cpu else self.devices

    @property
    def unit(self) -> str:
        return "cores" if self._is_one_cpu else NAMES[self.platform]

    @property
    def unit_memory(self) -> int:
        return self.memory // max(self.units, 1) if self.platform == "cpu" else self.memory

    @property
    def _is_one_cpu(self) -> bool:
        return self.platform == "cpu" and self.devices == 1


@dataclasses.dataclass(frozen=True)
class Share:
    """What one run at a time has of the machine."""

    environment: Mapping[str, str]
    removed: tuple[str, ...] = ()  # variables that would say something else
    cores: tuple[int, ...] = ()  # empty: all

    def take(self, environ: MutableMapping[str, str]) -> None:
        """Sets the variables, in the environment of the process whose share it is."""
        for name in self.removed:
            environ.pop(name, None)
        environ.update(self.environment)


def parse(text: str) -> Jobs:
    """Reads --jobs."""
    if text == "auto":
        return "auto"
    if not (text.isascii() and text.isdigit() and int(text)):
        raise UserError(f'--jobs: "{text}" is not allowed; it must be a whole number from 1, or auto')
    return int(text)


def number(jobs: Jobs, machine: Machine, runs: Sequence[Settings]) -> int:
    """How many runs run at a time; raises `UserError` where that many cannot have a share.

    "auto": as many as there are devices (of a CPU that is one device: cores), but not more than there are runs, if each
    run is small, which means that a whole batch fits into half of one device's memory; else one. The number of runs is
    that of the whole sweep, so that resuming it divides the machine as before.
    """
    if jobs == "auto":
        small = 2 * max(map(batch_bytes, runs)) <= machine.unit_memory
        return max(min(machine.units, len(runs)), 1) if small else 1
    if jobs > 1 and jobs > machine.units:
        raise UserError(f"--jobs: {jobs} is not allowed; it must be at most {machine.units}, the {machine.unit} here")
    return jobs


def batch_bytes(settings: Settings) -> int:
    """What the layers' outputs, and gradients of as many numbers, need in training: about all of a step's memory."""
    values = sum(math.prod(layer.shape) for layer in settings.trace())
    images = settings.train.batch_size // settings.train.accumulation_steps
    return 2 * 4 * values * images


def divide(machine: Machine, jobs: int, environ: Mapping[str, str]) -> list[Share]:
    """Equal shares for `jobs` runs at a time; what cannot be divided evenly stays idle."""
    per_job = len(machine.cores) // jobs  # 0: they share all of them
    own_cores = [tuple(machine.cores[index * per_job : (index + 1) * per_job]) for index in range(jobs)]
    if machine.platform == "cpu":
        environment = {} if machine.devices == 1 else {"JAX_NUM_CPU_DEVICES": str(machine.devices // jobs)}
        return [Share(environment, cores=own) for own in own_cores]
    names = VISIBLE[machine.platform]
    visible = _visible(machine, names, environ)
    each = machine.devices // jobs
    if machine.platform == "tpu":
        each = max(count for count in CHIP_BOUNDS if count <= each)
    shares = []
    for index, own in enumerate(own_cores):
        environment = {names[0]: ",".join(visible[index * each : (index + 1) * each])}
        if machine.platform == "tpu":
            environment |= _tpu_process(index, each)
        shares.append(Share(environment, removed=names[1:], cores=own))
    return shares


def _visible(machine: Machine, names: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """How the variable calls the devices that jax finds: as the user has it, or by number."""
    name = next((name for name in names if environ.get(name)), None)
    if name is None:
        return [str(index) for index in range(machine.devices)]
    visible = [part.strip() for part in environ[name].split(",")]
    if len(visible) != machine.devices:
        raise UserError(
            f"--jobs: {name} names {len(visible)} devices ({environ[name]}), jax finds {machine.devices}; they can be "
            "divided where these are the same"
        )
    return visible


def _tpu_process(index: int, chips: int) -> dict[str, str]:
    """What libtpu needs in order to let one process of several, which do not talk to each other, have its own chips."""
    port = str(TPU_PORT + index)
    return {
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": CHIP_BOUNDS[chips],
        "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
        "TPU_PROCESS_PORT": port,
        "CLOUD_TPU_TASK_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
