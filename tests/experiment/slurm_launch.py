"""launch.py as a user of Slurm types it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BYPASS = ["--config", "experiments/bypass.py"]
ON_SLURM = [*BYPASS, "--launcher", "slurm"]


def launch(*args, **kwargs):
    command = [sys.executable, str(ROOT / "launch.py"), *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, **kwargs)
