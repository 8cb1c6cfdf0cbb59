"""How idle the cores of this process are."""

import os
import time
from pathlib import Path

import pytest

from squeezenet_jax.system import cores

PROC = """cpu  9 9 9 9 9 9 9 0 0 0
cpu0 100 0 50 {0} {1} 0 145 114 0 0
cpu1 100 0 50 700 40 0 145 114 0 0
intr 1445172 0
ctxt 2211837
"""


@pytest.fixture
def pretend(monkeypatch):
    """Sets what /proc/stat says of core 0, in seconds idle and waiting for a disk, and the time."""
    ticks = os.sysconf("SC_CLK_TCK")

    def pretend(now, idle, waiting):
        monkeypatch.setattr(Path, "read_text", lambda self: PROC.format(int(idle * ticks), int(waiting * ticks)))
        monkeypatch.setattr(time, "monotonic", lambda: now)

    monkeypatch.setattr(cores, "usable", lambda: [0])
    return pretend


def test_idle_cores_are_those_of_this_process_between_two_looks(pretend):
    pretend(10.0, 5.0, 1.0)
    idle = cores.IdleCores()
    pretend(14.0, 6.0, 3.0)
    assert idle.look() == pytest.approx(3 / 4)
    pretend(16.0, 6.0, 3.0)
    assert idle.look() == 0


def test_where_no_proc_tells_a_core_is_idle_that_this_process_does_not_use(pretend, monkeypatch):
    def missing(self):
        raise FileNotFoundError

    pretend(10.0, 0, 0)
    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(cores, "cores", lambda: 4)
    monkeypatch.setattr(time, "process_time", lambda: 20.0)
    idle = cores.IdleCores()
    monkeypatch.setattr(time, "monotonic", lambda: 12.0)
    monkeypatch.setattr(time, "process_time", lambda: 23.0)
    assert idle.look() == pytest.approx(4 - 3 / 2)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="reads /proc")
def test_what_this_system_says_can_be_read():
    idle = cores.IdleCores()
    time.sleep(0.1)
    assert 0 <= idle.look() <= cores.cores() + 1
