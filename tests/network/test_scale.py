"""docs/scale.md and its arithmetic, benchmarks/scale.py; no jax."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "scale.py"


@pytest.fixture(scope="module")
def scale() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_of_scale", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_the_page_has_every_table_that_the_script_prints() -> None:
    """Also from another folder, as a program of its own, and without jax."""
    hidden = "import sys, runpy; sys.modules['jax'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    printed = subprocess.run([sys.executable, "-c", hidden, str(SCRIPT)], cwd="/", capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    tables = [part.strip() for part in printed.stdout.split("\n\n") if part.startswith("|")]
    page = (ROOT / "docs" / "scale.md").read_text()
    assert len(tables) > 5
    for table in tables:
        assert table in page, f"docs/scale.md lacks this table of benchmarks/scale.py:\n{table}"


def test_a_training_is_deepscales_170000_steps(scale: Any) -> None:
    assert scale.IMAGES == 170_000 * 512


def test_a_training_step_is_three_forward_passes_but_for_the_image_s_gradient(scale: Any) -> None:
    layers = scale.network("v1.0", 227)
    forward = 861_339_936  # DeepScale's v1.0, 227 px
    assert scale.train_flop(layers) == 2 * (3 * forward - 111 * 111 * 7 * 7 * 3 * 96)


def test_a_step_takes_as_long_as_what_it_waits_for(scale: Any) -> None:
    assert scale.Step(device=3, all_reduce=2, input=4, host=1).seconds == 5
    assert scale.Step(device=2, all_reduce=3, input=4, host=1).limit == "all-reduce"
    assert scale.Step(device=1, all_reduce=1, input=4, host=1).limit == "input"
    assert scale.Step(device=1, all_reduce=1, input=4, host=5).limit == "host"


def test_one_chip_has_nothing_to_reduce_and_many_send_each_parameter_twice(scale: Any) -> None:
    layers, parameters = scale.network("v1.0"), 1_248_424
    assert scale.all_reduce_seconds(scale.V5E, layers, 1) == 0
    wire = scale.all_reduce_seconds(scale.V5E, layers, 256) - 2 * (15 + 15) * scale.V5E.hop
    assert wire == pytest.approx(2 * 4 * parameters * 255 / 256 / 50e9)
