"""Processes of this program's own, and how urgent they are."""

import contextlib
import os
import signal
import threading
import time
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

from squeezenet_jax.system import children


def policies(pid):
    return {os.sched_getscheduler(int(thread)) for thread in os.listdir(f"/proc/{pid}/task")}


def wait(pipe):
    children.go_first_if_memory_runs_out()
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    pipe.send(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    pipe.recv()


def started():
    """The numbers of all processes that this one has started."""
    found = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # of a thread that has just ended
            found |= set(map(int, path.read_text().split()))
    return found


@pytest.mark.timeout(60)
@pytest.mark.skipif(not os.path.exists(f"/proc/self/task/{os.getpid()}/children"), reason="Linux only")
def test_a_process_that_dies_as_it_starts_is_not_waited_for_however_much_it_was_to_be_told():
    def kill():
        while not (found := started() - before):
            time.sleep(0.001)
        os.kill(found.pop(), signal.SIGKILL)

    resource_tracker.ensure_running()  # which would be the first one
    before = started()
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    pipe, process = children.start(wait, bytes(10_000_000))
    killer.join()
    process.join()
    with pytest.raises((EOFError, OSError)):
        pipe.recv()


@pytest.mark.skipif(not children.gives_way(), reason="Linux only")
def test_a_process_that_is_not_urgent_runs_on_idle_cores_only_with_all_its_threads_and_is_the_first_to_go():
    before = policies(os.getpid())
    pipe, process = children.start(wait, urgent=False)
    assert policies(process.pid) == {os.SCHED_IDLE}  # from its first moment
    assert set(children.ENDING) <= pipe.recv()  # until it is ready for them
    assert policies(process.pid) == {os.SCHED_IDLE}
    with open(f"/proc/{process.pid}/oom_score_adj") as file:
        assert int(file.read()) == 1000
    pipe.send("end")
    process.join()
    assert policies(os.getpid()) == before


def test_others_are_as_urgent_as_this_one():
    pipe, process = children.start(wait)
    assert set(children.ENDING) <= pipe.recv()
    if children.gives_way():
        assert policies(process.pid) == policies(os.getpid())
    pipe.send("end")
    process.join()
