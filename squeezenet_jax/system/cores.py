"""How many cores there are to share work among, and how idle they are. Standard library only."""

import contextlib
import os
import time
from pathlib import Path


def cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(usable()) or os.cpu_count() or 1


def usable() -> list[int]:
    """The cores that this process may use, those that share hardware side by side; empty where no system tells."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    return sorted(os.sched_getaffinity(0), key=_place)


class IdleCores:
    """How many of the cores that this process may use are idle, on average from one look to the next.

    0 where the system does not tell, or where a container has a quota of their time: idle cores are not its own there.
    """

    def __init__(self) -> None:
        self._began, self._before = time.monotonic(), _idle_seconds()

    def look(self) -> float:
        began, before = self._began, self._before
        self._began, self._before = time.monotonic(), _idle_seconds()
        return 0.0 if _has_quota() else (self._before - before) / max(self._began - began, 1e-9)


def _has_quota() -> bool:
    """Of the CPU's time, by Linux's control groups, version 2 and 1."""
    for name, unlimited in (("cpu.max", "max"), ("cpu/cpu.cfs_quota_us", "-1")):
        with contextlib.suppress(OSError):
            if not (Path("/sys/fs/cgroup") / name).read_text().startswith(unlimited):
                return True
    return False


def _idle_seconds() -> float:
    """That they have been idle, all together; 0 where no /proc tells."""
    try:
        text = Path("/proc/stat").read_text()
    except OSError:
        return 0.0
    mine = {f"cpu{core}" for core in usable()}
    of_mine = [fields for line in text.splitlines() if (fields := line.split())[0] in mine]
    ticks = sum(int(idle) + int(waits_for_disk) for _, _, _, _, idle, waits_for_disk, *_ in of_mine)
    return ticks / os.sysconf("SC_CLK_TCK")


def _place(core: int) -> tuple[int, int, int]:
    """(socket, first of the hardware threads that are one core, core), as far as Linux says it."""
    folder = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    try:
        socket = int((folder / "physical_package_id").read_text())
        first = int((folder / "thread_siblings_list").read_text().replace("-", ",").split(",")[0])
    except (OSError, ValueError):
        return 0, core, core
    return socket, first, core
