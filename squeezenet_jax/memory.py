"""Large pages for XLA's buffers on a CPU. Standard library only."""

import os
import platform
import sys

TUNABLES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def restart_with_large_pages() -> None:
    """Starts this program anew, in the same process, with a malloc that asks Linux for 2 MB pages; once.

    XLA's CPU backend takes its buffers from malloc anew at each step, and the kernel clears what it hands out, page by
    page of 4 KB: a fifth of a training step's CPU time. glibc reads the setting only as a program starts. Elsewhere,
    and where the user has set GLIBC_TUNABLES, nothing happens.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | TUNABLES)
