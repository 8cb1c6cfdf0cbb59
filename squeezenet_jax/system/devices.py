"""Devices: one mesh axis named `data`; parameters on every device, batches split among them."""

import contextlib
import fcntl
import functools
import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from squeezenet_jax.system import processes
from squeezenet_jax.system.errors import UserError

IN_FLIGHT = 8
ASKING = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_NUM_CPU_DEVICES")  # for devices; the first one counts most


def keep_compiled_programs() -> None:
    """Lets the runs of all sweeps share what XLA compiles, in ~/.cache, unless JAX_COMPILATION_CACHE_DIR says where.

    Only this user should be able to write there: whoever can, can run code.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "squeezenet_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if available()[0].platform == "cpu":  # else each program is named after the cache's path, too, for GPUs' sake
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def local_cache() -> Path | None:
    """Where compiled programs are kept, if that is a folder of this machine."""
    place: str | None = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    is_on: bool = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    return Path(place) if place and is_on and "://" not in place else None


@contextlib.contextmanager
def compiled_once(what: object) -> Iterator[None]:
    """Where several processes of this machine compile the programs of `what` at the same time, lets one go first.

    The others wait, and find in the cache what it compiled. `what` is known by its repr.
    """
    place = local_cache()
    if place is None or processes.several():  # processes that compute together wait for each other
        yield
        return
    with contextlib.ExitStack() as stack:
        # A byte for each `what` of one file that is never written to. The system unlocks it when the process ends.
        with contextlib.suppress(OSError):  # no such folder can be made, or a file system without locks
            place.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(place / "compiling", "a"))
            byte = int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:7])
            fcntl.lockf(file, fcntl.LOCK_EX, 1, byte)
        yield


def use_the_usual_numbers() -> None:
    """Whatever variables such as JAX_ENABLE_X64 and JAX_DEFAULT_PRNG_IMPL say.

    In float64, or with other random numbers, training would be another result under the same settings, and in float64
    its checkpoints would be of another type.
    """
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_default_prng_impl", "threefry2x32")
    jax.config.update("jax_threefry_partitionable", True)


def available() -> list[jax.Device]:
    """All devices, in every process. Raises `UserError` where those that variables ask for are not there."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # the second, without a word, where a plugin is not installed
        variable = next((name for name in ASKING if os.environ.get(name)), ASKING[0])
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{variable}: {os.environ.get(variable, '')!r} cannot be had here{reason and f' ({reason})'}; unset it to "
            'use the devices that there are, or install jax for it: pip install -U "jax[cuda13]" or "jax[tpu]"'
        ) from None


@functools.cache
def data_mesh() -> Mesh:
    """All devices in a row, those of a process side by side, so that it holds one stretch of a batch."""
    devices = sorted(available(), key=lambda device: (device.process_index, device.id))
    # Auto, not the default Explicit: dropout's mask has no sharding of its own, which Explicit refuses.
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """By example: the first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_sizes(sizes: Mapping[str, tuple[int, int]], mesh: Mesh) -> None:
    """`sizes`: field -> (batch size, parts of it that are computed one after another).

    Raises one `UserError` that names every field whose batch the devices cannot share, and the nearest sizes that fit.
    """
    problems = []
    for field, (size, parts) in sizes.items():
        unit = mesh.size * parts
        if size % unit:
            times = f" x {parts} accumulation steps" if parts > 1 else ""
            nearest = dict.fromkeys((max(size // unit, 1) * unit, -(-size // unit) * unit))
            fitting = " or ".join(map(str, nearest))
            problems.append(f"{field}: {size} is not a multiple of the {mesh.size} devices{times}; nearest: {fitting}")
    if problems:
        raise UserError("; ".join(problems))


def rows(batch_size: int, mesh: Mesh) -> tuple[int, int]:
    """(start, stop) of the examples of a batch that this process's devices hold."""
    held = split(mesh).addressable_devices_indices_map((batch_size,)).values()
    stretches = [index[0].indices(batch_size) for index in held if index is not None]
    return min(start for start, _, _ in stretches), max(stop for _, stop, _ in stretches)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> Any:
    """Sends each device its part of a batch; `batch` has this process's `rows`."""
    if not processes.several():
        return jax.device_put(dict(batch), split(mesh))
    sharding = split(mesh)

    def put(x: np.ndarray) -> jax.Array:
        shape = (len(x) * mesh.size // mesh.local_mesh.size, *x.shape[1:])
        first, _ = rows(shape[0], mesh)
        parts = []
        for device, index in sharding.addressable_devices_indices_map(shape).items():
            assert index is not None
            start, stop, _ = index[0].indices(shape[0])
            parts.append(jax.device_put(x[start - first : stop - first], device))
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    return {name: put(x) for name, x in batch.items()}


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts arrays that are the same in every process on every device."""

    def put(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, replicated(mesh), lambda index: x[index])

    return jax.tree.map(put, tree)


class PeakMemory:
    """What a run needs of its devices. They keep the peak of the whole process, in which another run may have been."""

    def __init__(self) -> None:
        self._before = _peak_memory() or 0

    def read(self) -> int | None:
        """Bytes in use at most since this was made, on the fullest device of this process.

        None where the backend does not say, or an earlier run had more in use.
        """
        peak = _peak_memory()
        return None if peak is None or peak <= self._before else peak


def _peak_memory() -> int | None:
    used = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return max((int(count) for count in used if count is not None), default=None)


class Pace:
    """Keeps the host at most `IN_FLIGHT` programs ahead of the devices, whose memory holds the batch of each."""

    def __init__(self) -> None:
        self._results: deque[Any] = deque()

    def add(self, result: Any) -> None:
        """Takes what a program returned, and waits for the one that was begun `IN_FLIGHT` earlier."""
        self._results.append(result)
        if len(self._results) > IN_FLIGHT:
            jax.block_until_ready(self._results.popleft())


@functools.cache
def _seed_to_key(mesh: Mesh) -> Any:
    return jax.jit(jax.random.key, out_shardings=replicated(mesh))


def run_key(seed: int, mesh: Mesh) -> jax.Array:
    """The key that all of a run's randomness on the devices follows from, on every device."""
    key: jax.Array = _seed_to_key(mesh)(replicate(np.uint32(seed), mesh))
    return key
