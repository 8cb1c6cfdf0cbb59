"""A run that hangs ends by itself, and says in what."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import sys, time
from pathlib import Path
from squeezenet_jax.system.watchdog import Watchdog

with Watchdog(float(sys.argv[1]), lambda message: print(message, flush=True), Path(sys.argv[2])).watching() as watchdog:
    for step in range(5):
        watchdog.phase(f"step {step}")
        time.sleep(0.2)
    time.sleep(float(sys.argv[3]))
"""


@pytest.mark.parametrize(("limit", "code"), [(0.8, 75), (0, 0)])
def test_what_hangs_is_ended_and_named_but_not_what_makes_progress(tmp_path, limit, code):
    trace = tmp_path / "hang.txt"
    command = [sys.executable, "-c", CODE, str(limit), str(trace), "60" if code else "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (code, "")
    assert trace.is_file() == bool(code)
    if code:
        assert result.stdout.startswith("no progress for 1 s in step 4; stacks in ")
        assert "time.sleep" not in result.stdout and "<string>" in trace.read_text()


def test_a_disk_that_hangs_too_delays_nothing(tmp_path):
    os.mkfifo(tmp_path / "hang.txt")  # whoever opens it waits for a reader
    command = [sys.executable, "-c", CODE, "0.8", str(tmp_path / "hang.txt"), "60"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert result.returncode == 75 and re.match(r"no progress for \d+ s in step \d; stacks in ", result.stdout)
