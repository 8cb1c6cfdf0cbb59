"""While runs train that leave a core idle, the next setting's programs are compiled on it, in a process of their own.

They appear in the cache on the disk when all of them are ready; the run that needs them reads them from there. If it
begins earlier, the process is given up and the run compiles them: nobody waits for what runs on idle cores only.

Only on a CPU: a GPU or TPU belongs to the process that trains. Runs that keep the cores busy would only become slower,
however little the process asks for: the main job on two cores, 1.7 of them busy, took 1.07 times as long
(benchmarks/LOG.md).
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from squeezenet_jax.data import catalog
from squeezenet_jax.settings import Settings
from squeezenet_jax.system import atomic, children, cores
from squeezenet_jax.system.errors import UserError

IDLE_CORES = 0.75  # on average, while the run before trained: about all of one
GONE_SECONDS = 1.0  # for a process to end that was killed; it needs an idle core for that, too
SCRATCH, PROGRAMS = "squeezenet_jax_ahead_", "*-cache"  # folders of ours, files of jax's


class Ahead:
    """The process that compiles, if there is one. It must be closed: what it has not finished by then is given up."""

    def __init__(self) -> None:
        self._process: Any = None
        self._left = contextlib.ExitStack()  # what is to be done when it has ended, or must
        self._seen: set[Settings] = set()  # with seed 0, as programs do not depend on it
        self._at: Settings | None = None
        self._idle: cores.IdleCores | None = None

    def before(self, run: Settings, following: Settings | None) -> None:
        """To be called before each run; `following` is one of the settings to come, None where there is none."""
        idle, self._idle = self._idle.look() if self._idle else 0.0, self._idle or cores.IdleCores()
        self._seen.add(own := _seedless(run))
        if self._process and self._process.is_alive() and self._at != own:
            return
        self.close()
        if idle < IDLE_CORES or not following:
            return
        if (wanted := _seedless(following)) not in self._seen and _possible():
            self._seen.add(wanted)
            # No room for another process or its files, or images that are not there: the run itself will say so.
            with contextlib.suppress(OSError, RuntimeError, UserError):
                self._start(wanted)

    def _start(self, wanted: Settings) -> None:
        self._at, steps_per_epoch = wanted, catalog.count(wanted.data, "train_split") / wanted.train.batch_size
        scratch = self._left.enter_context(tempfile.TemporaryDirectory(prefix=SCRATCH, ignore_cleanup_errors=True))
        arguments = (compile_and_end, wanted, steps_per_epoch, scratch)
        pipe, self._process = children.start(*arguments, urgent=False)
        self._left.callback(pipe.close)
        self._left.callback(self._process.join, GONE_SECONDS)
        self._left.callback(self._process.kill)

    def close(self) -> None:
        self._left.close()
        self._process = None


def _seedless(settings: Settings) -> Settings:
    return dataclasses.replace(settings, seed=0)


def _possible() -> bool:
    import jax

    from squeezenet_jax.system import devices, processes

    on_cpu = devices.available()[0].platform == "cpu"
    drops_some = jax.config.jax_compilation_cache_max_size >= 0  # type: ignore[attr-defined]  # then jax locks it
    keeps_all = devices.local_cache() is not None and not drops_some
    return on_cpu and keeps_all and children.gives_way() and not processes.several()


def compile_and_end(pipe: Any, settings: Settings, steps_per_epoch: float, scratch: str) -> None:
    """The life of the process. What goes wrong in it is left to the run itself, which will meet it and say so."""
    children.leave_signals_to_parent()
    children.go_first_if_memory_runs_out()
    children.end_with_parent(lambda: shutil.rmtree(scratch, ignore_errors=True))
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    with contextlib.suppress(Exception):
        import jax

        from squeezenet_jax.system import devices
        from squeezenet_jax.training import train

        devices.use_the_usual_numbers()
        devices.keep_compiled_programs()
        if cache := devices.local_cache():
            for known in cache.glob(PROGRAMS):
                (Path(scratch) / known.name).symlink_to(known.absolute())
            jax.config.update("jax_compilation_cache_dir", scratch)  # jax's own files there appear bit by bit
            train.compile_ahead(settings, steps_per_epoch)
            for new in Path(scratch).glob(PROGRAMS):
                if not new.is_symlink():
                    atomic.write(cache / new.name, new.read_bytes())
