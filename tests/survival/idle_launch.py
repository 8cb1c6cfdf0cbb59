"""launch.py where every run leaves a core idle, as it seems, the first one included.

What is compiled ahead needs no core that is really idle, which a busy machine may not have.
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from squeezenet_jax.experiment import ahead  # noqa: E402
from squeezenet_jax.system import children, malloc  # noqa: E402

if __name__ == "__main__":
    malloc.restart_with_tuned_malloc()  # as launch.py would, which would forget this
    ahead.IDLE_CORES = -1.0
    children._start_giving_way = children._start
    runpy.run_path(str(ROOT / "launch.py"), run_name="__main__")
