"""What the report's intervals cover in simulated sweeps without a difference: a part of benchmarks/coverage.py."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def coverage() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_coverage", path)  # "coverage" is a package's name, too
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_all_intervals_hold_together_in_95_of_100_sweeps(coverage: Any) -> None:
    """Equal noise, which the level is computed for; chance moves 2,000 sweeps by ±1."""
    found = coverage.coverage(coverage.Scenario("equal", (0.3,) * 4, 3), 2000)
    assert 0.93 <= found["all rows (the report's)"] <= 0.97
    assert 0.93 <= found["one row"] <= 0.97
    assert found["all rows, uncorrected"] < 0.9  # so there is something to correct
    assert found["Holm claims nothing"] >= 0.93


def test_noise_that_differs_by_setting_is_covered_too_where_one_variance_for_all_fails(coverage: Any) -> None:
    found = coverage.coverage(coverage.Scenario("unequal", (0.1, 0.1, 0.3, 1.5), 5), 1000)
    assert found["all rows (the report's)"] >= 0.93
    assert found["all rows, pooled Dunnett"] < 0.9


def test_other_seeds_and_images_are_covered_where_seeds_alone_are_not(coverage: Any) -> None:
    found = coverage.image_coverage(5, 150, size=300, run=0.0)
    assert found["seeds alone"] < 0.9 and found["seeds and images (the report's)"] >= 0.93
