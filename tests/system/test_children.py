"""Processes of this program's own, and how urgent they are."""

import os
import threading

import pytest

from squeezenet_jax.system import children


def policies(pid):
    return {os.sched_getscheduler(int(thread)) for thread in os.listdir(f"/proc/{pid}/task")}


def idle(pipe):
    children.use_idle_cores_only()
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    pipe.send("ready")
    pipe.recv()


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="Linux only")
def test_a_process_on_idle_cores_has_threads_of_the_same_kind_until_somebody_waits_for_it():
    pipe, process = children.start(idle)
    try:
        assert pipe.recv() == "ready"
        assert policies(process.pid) == {os.SCHED_IDLE}
        with open(f"/proc/{process.pid}/oom_score_adj") as file:
            assert int(file.read()) == 1000
        children.use_cores_like_others(process.pid)
        assert policies(process.pid) == {os.SCHED_OTHER}
    finally:
        pipe.send("end")
        process.join()
    children.use_cores_like_others(process.pid)  # it has ended: nobody minds
