"""Several processes that run one program together: a TPU pod, a Slurm step with several tasks, or two by hand.

All of them execute the same plan. The first, the main one, reads checkpoints, writes files and talks; what only it
knows reaches the others through `from_main`. Imports no jax until there is more than one.
"""

import glob
import importlib.util
import itertools
import json
import os
import signal
from collections.abc import Mapping
from typing import Any

import numpy as np

from squeezenet_jax.system.errors import UserError

HEARTBEAT_SECONDS = 30  # without a sign of life from one of them, after which all end; jax itself waits 100

_index, _count = 0, 1
_stopping = False
_asked = itertools.count(1)  # over all runs; the same in all processes, since they ask equally often


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Makes this process one of several, if it is; must come before anything touches a device.

    The three are given by hand (`coordinator` is host:port of process 0), or the surroundings say it.
    """
    global _index, _count
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    by_hand = any(value is not None for value in given.values())
    if by_hand:
        _check(given)
    elif not detected(os.environ):
        return
    import jax

    on_term = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        who = (
            "--coordinator" if by_hand else "several processes (Slurm, Open MPI, Kubernetes or Cloud TPU) were detected"
        )
        raise UserError(f"{who}: they do not come together ({reason})") from None
    _index, _count = jax.process_index(), jax.process_count()
    if _count == 1:
        signal.signal(signal.SIGTERM, on_term)  # jax has taken it over; with one process nobody would ask it


def _check(given: Mapping[str, Any]) -> None:
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise UserError(f"{missing[0]}: is missing; all of {', '.join(given)} are needed, or none")
    coordinator, count, index = given.values()
    if not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator: {coordinator} is not allowed; it must be host:port of process 0")
    if count < 1:
        raise UserError(f"--num-processes: {count} is not allowed; it must be at least 1")
    if not 0 <= index < count:
        raise UserError(f"--process-id: {index} is not allowed; it must be from 0 to {count - 1}")


def detected(environ: Mapping[str, str]) -> bool:
    """Whether the surroundings say that this may be one of several processes; jax then finds out the rest.

    Slurm's steps with several tasks, Open MPI, Kubernetes' indexed jobs, and Cloud TPU, whose hosts are one machine.
    """
    if started_together(environ) or ("KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ):
        return True
    tpu = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/*")
    return bool(tpu) and importlib.util.find_spec("libtpu") is not None and "TPU_SKIP_MDS_QUERY" not in environ


def started_together(environ: Mapping[str, str]) -> bool:
    """Whether a launcher says that it has started several processes of this command.

    Kubernetes and Cloud TPU do not say how many there are: an indexed job, or a TPU, may have one.
    """
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environ for name in slurm) and int(environ["SLURM_NTASKS"]) > 1:
        return True
    return int(environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1


def several() -> bool:
    return _count > 1


def is_main() -> bool:
    return _index == 0


def from_main(value: Any) -> Any:
    """The main process's value (anything that JSON can hold), in every process."""
    if not several():
        return value
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(size, np.uint8)
    padded[: min(size, len(text))] = text[:size]
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def check_same(what: str, value: Any) -> None:
    """Raises `UserError` where a process's value is not the main one's: together they would compute nonsense."""
    expected = from_main(value)
    if isinstance(value, dict):  # only what differs is worth a line
        differing = {key for key in value | expected if value.get(key) != expected.get(key)}
        value, expected = ({key: x for key, x in both.items() if key in differing} for both in (value, expected))
    if value != expected:
        raise UserError(f"{what}: process {_index} has {value}, process 0 has {expected}; they must be the same")


def tree_from_main(tree: Any) -> Any:
    """The main process's arrays, in every process; the others give arrays of the same shapes and types."""
    if not several():
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)


def should_stop(requested: bool) -> bool:
    """Whether to stop here: a signal came, to any of the processes; all of them get the same answer.

    All must ask at the same places: after each step, before each batch of an evaluation, before each run. With several
    processes jax itself catches SIGTERM and settles the place, so another signal (`requested`) is passed on to it.
    """
    global _stopping
    if not several():
        return requested
    from jax.experimental import multihost_utils

    if requested:
        os.kill(os.getpid(), signal.SIGTERM)
    # jax says it once, which may be at a run's last step; the runs behind it must not begin.
    _stopping = _stopping or bool(multihost_utils.reached_preemption_sync_point(next(_asked)))
    return _stopping
