"""While runs train that leave a core idle, the next setting's programs are compiled on it, in a process of their own.

They go into the cache on the disk; the run that needs them reads them from there, and waits for the process if it is
still at them, as for any other that compiles the same (`devices.compiled_once`). Only on a CPU: a GPU or TPU belongs
to the process that trains. Runs that keep the cores busy would only become slower, however little the process asks
for: the main job on two cores, 1.7 of them busy, took 1.07 times as long (benchmarks/LOG.md).
"""

import contextlib
import dataclasses
import os
import threading
from typing import Any

from squeezenet_jax.settings import Settings
from squeezenet_jax.system import children, cores

IDLE_CORES = 0.75  # on average, while the run before trained: about all of one


class Ahead:
    """The process that compiles, if there is one. It must be closed: what it has not finished by then is given up."""

    def __init__(self) -> None:
        self._pipe: Any = None
        self._process: Any = None
        self._seen: set[Settings] = set()  # with seed 0, as programs do not depend on it
        self._at: Settings | None = None
        self._idle: cores.IdleCores | None = None

    def before(self, run: Settings, following: Settings | None) -> None:
        """To be called before each run; `following` is one of the settings to come, None where there is none."""
        idle, self._idle = self._idle.look() if self._idle else 0.0, self._idle or cores.IdleCores()
        self._seen.add(own := _seedless(run))
        if self._process and self._process.is_alive():
            if self._at == own:
                children.use_cores_like_others(self._process.pid)
            return
        self.close()
        if idle < IDLE_CORES or not following:
            return
        if (wanted := _seedless(following)) not in self._seen and _possible():
            self._seen.add(wanted)
            self._at = wanted
            self._pipe, self._process = children.start(compile_and_end, wanted)

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _seedless(settings: Settings) -> Settings:
    return dataclasses.replace(settings, seed=0)


def _possible() -> bool:
    from squeezenet_jax.system import devices, processes  # jax

    on_cpu = devices.available()[0].platform == "cpu"
    return on_cpu and devices.keeps_compiled_programs() and not processes.several()


def compile_and_end(pipe: Any, settings: Settings) -> None:
    """The life of the process. What goes wrong in it is left to the run itself, which will meet it and say so."""
    children.use_idle_cores_only()
    children.leave_signals_to_parent()
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    from squeezenet_jax.system import devices
    from squeezenet_jax.training import train

    devices.use_the_usual_numbers()
    devices.keep_compiled_programs()
    with contextlib.suppress(Exception):
        train.compile_ahead(settings)


def _end_with_parent(pipe: Any) -> None:
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()
    os._exit(1)  # nobody is left who would use what this process compiles
