"""What workers do in `test_jobs.py`, in processes of their own, which import this and so no jax."""

import errno
import os
import signal
import time
from pathlib import Path

from squeezenet_jax.experiment.worker import BEGAN, ENDED, FAILED, QUIT, READY, STOP, TOLD
from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.system.errors import UserError


def pretend(pipe, share, plan, place, unfinished):
    """A worker: a run is done at once, unless a file in the workdir, named like the run, says what happens to it."""
    workdir = Path(place)
    pipe.send((READY,))
    while (order := pipe.recv()) != QUIT:
        if order == STOP:
            continue
        name, following = order
        pipe.send((BEGAN,))
        fate = workdir.with_name("fates") / name
        fate = fate.read_text() if fate.exists() else ""
        directory = RunDirectory(workdir / name)
        directory.path.mkdir()
        directory.write_status("running")
        if fate == "lasts":  # so that nobody has done two before another one was seen to be ready
            time.sleep(0.5)
        if fate == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == "hung":
            directory.write_status("hung")
            os._exit(75)
        if fate == "disk":
            pipe.send((FAILED, OSError(errno.ENOSPC, "No space left on device", f"{name}/checkpoint")))
            return
        if fate == "slow":
            assert pipe.recv() == STOP
        status = "preempted" if fate == "slow" else "done"
        directory.write_status(status, f"{os.getpid()} {following}")
        pipe.send((ENDED, status))
        if fate == "talks":  # a thread of the run's, which has not heard that it ended
            pipe.send((TOLD, "notice", "left out, unreadable: cat/1.jpg"))


def refuse(pipe, *rest):
    pipe.send((FAILED, UserError("train.batch_size: 33 is not a multiple of the 2 devices")))


def die(pipe, *rest):
    os.kill(os.getpid(), signal.SIGKILL)
