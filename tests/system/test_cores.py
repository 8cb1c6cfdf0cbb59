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
    """Sets the time, what /proc/stat says of core 0, in seconds idle and waiting for a disk, and control groups."""
    ticks = os.sysconf("SC_CLK_TCK")

    def pretend(now, idle, waiting, groups=()):
        files = {"/proc/stat": PROC.format(int(idle * ticks), int(waiting * ticks)), **dict(groups)}

        def read_text(path):
            try:
                return files[str(path)]
            except KeyError:
                raise FileNotFoundError from None

        monkeypatch.setattr(Path, "read_text", read_text)
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


@pytest.mark.parametrize(
    ("name", "quota", "none"),
    [("cpu.max", "200000 100000", "max 100000"), ("cpu/cpu.cfs_quota_us", "200000", "-1")],
)
def test_where_a_quota_limits_this_process_idle_cores_are_not_its_own(pretend, name, quota, none):
    for text, expected in ((quota, 0.0), (none, 1.0)):
        groups = {f"/sys/fs/cgroup/{name}": text + "\n"}
        pretend(10.0, 5.0, 1.0, groups)
        idle = cores.IdleCores()
        pretend(14.0, 9.0, 1.0, groups)
        assert idle.look() == pytest.approx(expected)


def test_where_no_proc_tells_none_is_idle(monkeypatch):
    def missing(self):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    idle = cores.IdleCores()
    time.sleep(0.01)
    assert idle.look() == 0


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="reads /proc")
def test_what_this_system_says_can_be_read():
    idle = cores.IdleCores()
    time.sleep(0.1)
    assert 0 <= idle.look() <= cores.cores() + 1
