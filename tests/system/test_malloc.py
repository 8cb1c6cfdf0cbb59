"""The restart with another malloc: once, with the same arguments, and not against the user's own setting."""

import gc
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from squeezenet_jax.system import malloc

SCRIPT = """
import os, sys
from squeezenet_jax.system import malloc
print("start", flush=True)
malloc.restart_with_tuned_malloc()
print(sys.argv[1:], os.environ["GLIBC_TUNABLES"])
"""
needs_glibc = pytest.mark.skipif(not malloc._has_tunables(), reason="only glibc, from 2.35 on, has these tunables")


def run(environment, script=SCRIPT):
    clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", script, "--flag=a b", "x"]
    root = Path(__file__).parents[2]
    return subprocess.run(command, env=clean | environment, cwd=root, capture_output=True, text=True, check=True).stdout


@needs_glibc
def test_large_buffers_come_from_the_heap():
    """glibc counts what it has from mmap; by default that is each buffer of 64 MB."""
    allocate = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
assert libc.malloc(ctypes.c_size_t(64 << 20))
class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    _fields_ = [(name, ctypes.c_size_t) for name in names]
libc.mallinfo2.restype = Info
print(libc.mallinfo2().hblkhd >> 20)
"""

    assert int(run({}, allocate)) >= 64
    assert int(run(malloc.TUNABLES, allocate)) < 64


def test_an_older_glibc_is_left_alone(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("restarted"))
    for version in (("glibc", "2.34"), ("", "")):  # musl has no version
        monkeypatch.setattr(platform, "libc_ver", lambda version=version: version)
        malloc.restart_with_tuned_malloc()


@needs_glibc
def test_restarts_once_with_the_same_arguments():
    assert run({}).splitlines() == ["start", "start", f"['--flag=a b', 'x'] {malloc.TUNABLES['GLIBC_TUNABLES']}"]


def test_leaves_the_users_setting_alone():
    own = "glibc.malloc.check=0"
    assert run({"GLIBC_TUNABLES": own}).splitlines() == ["start", f"['--flag=a b', 'x'] {own}"]


@needs_glibc
def test_memory_that_nothing_uses_is_given_back():
    """Small pieces below one that is in use: by itself glibc keeps them."""
    script = """
import ctypes, re
from squeezenet_jax.system import malloc
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10
pieces = [libc.malloc(ctypes.c_size_t(4000)) for _ in range(50_000)]
for piece in pieces:
    ctypes.memset(piece, 1, 4000)
used = libc.malloc(ctypes.c_size_t(4000))
for piece in pieces:
    libc.free(piece)
kept = resident()
malloc.give_back()
print(kept - resident())
"""
    assert int(run(malloc.TUNABLES, script)) >= 150


def test_elsewhere_memory_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda _: pytest.fail("asked another C library"))
    malloc.give_back()


def test_garbage_is_collected_again_after_what_must_not_wait_for_it():
    def collects_after(enabled):
        (gc.enable if enabled else gc.disable)()
        try:
            with pytest.raises(KeyError), malloc.without_collection():
                assert not gc.isenabled()
                raise KeyError("whatever")
            return gc.isenabled()
        finally:
            gc.enable()

    assert collects_after(True)
    assert not collects_after(False)
