"""How many cores there are to share work among. Standard library only."""

import os
from pathlib import Path


def cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(usable()) or os.cpu_count() or 1


def usable() -> list[int]:
    """The cores that this process may use, those that share hardware side by side; empty where no system tells."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    return sorted(os.sched_getaffinity(0), key=_place)


def _place(core: int) -> tuple[int, int, int]:
    """(socket, first of the hardware threads that are one core, core), as far as Linux says it."""
    folder = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    try:
        socket = int((folder / "physical_package_id").read_text())
        first = int((folder / "thread_siblings_list").read_text().replace("-", ",").split(",")[0])
    except (OSError, ValueError):
        return 0, core, core
    return socket, first, core
