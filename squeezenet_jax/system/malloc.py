"""A malloc that suits XLA's buffers on a CPU. Standard library only."""

import contextlib
import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator

# Pages of 2 MB; and in the main thread's arena, buffers below 1 GB come from the heap, which keeps as much of what was
# freed at its end.
KEPT = 1 << 30
TUNABLES = {
    "GLIBC_TUNABLES": f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold={KEPT}:glibc.malloc.trim_threshold={KEPT}"
}


def restart_with_tuned_malloc() -> None:
    """Starts this program anew, in the same process, with `TUNABLES`; once.

    XLA's CPU backend takes its buffers from malloc anew at each step. As glibc is set by default, they are new pages of
    4 KB each time, which the kernel clears one by one: a fifth of a training step's CPU time. (The largest, a step's
    temporary one, is taken in a thread of XLA's and remains new, in pages of 2 MB.) glibc reads its settings only as a
    program starts. Elsewhere, and where the user has set GLIBC_TUNABLES, nothing happens.
    """
    if sys.platform == "linux" and _has_tunables() and "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | TUNABLES)


def give_back() -> None:
    """Collects garbage and, where malloc is glibc's, gives the memory that nothing uses back to the system.

    Compiling takes some hundred MB in small pieces, which glibc would keep, in the arena of each thread.
    """
    gc.collect()
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Leaves garbage alone meanwhile: of what tracing makes, most stays, and each collection goes through all of it."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _has_tunables() -> bool:
    """Older glibc knows no `hugetlb`, and refuses so high a threshold after it has given up its own, moving one."""
    name, version = platform.libc_ver()
    return name == "glibc" and tuple(int(number) for number in version.split(".")[:2]) >= (2, 35)
