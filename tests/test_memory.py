"""The restart with another malloc: once, with the same arguments, and not against the user's own setting."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from squeezenet_jax import memory

SCRIPT = """
import os, sys
from squeezenet_jax import memory
print("start", flush=True)
memory.restart_with_tuned_malloc()
print(sys.argv[1:], os.environ["GLIBC_TUNABLES"])
"""
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc reads GLIBC_TUNABLES")


def run(environment):
    clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", SCRIPT, "--flag=a b", "x"]
    root = Path(__file__).parents[1]
    return subprocess.run(command, env=clean | environment, cwd=root, capture_output=True, text=True, check=True).stdout


@needs_glibc
def test_restarts_once_with_the_same_arguments():
    assert run({}).splitlines() == ["start", "start", f"['--flag=a b', 'x'] {memory.TUNABLES['GLIBC_TUNABLES']}"]


def test_leaves_the_users_setting_alone():
    own = "glibc.malloc.check=0"
    assert run({"GLIBC_TUNABLES": own}).splitlines() == ["start", f"['--flag=a b', 'x'] {own}"]
