"""How narrow can it be, and does the answer depend on the bypass: five widths, without and with the simple bypass?

The report's differences are what a narrower network loses: each to the full width with the same bypass.
Cost on digits: 30 runs, about 20 minutes on two cores (by MACs, from bypass.py's five).
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import base

BASELINE = {"model.width": 1.0}


def get_config(preset: str = base.PRESET) -> ConfigDict:
    return base.get_config(preset)


def sweep() -> Iterator[dict[str, Any]]:
    for width in (0.125, 0.25, 0.5, 0.75, 1.0):
        for bypass in ("none", "simple"):
            for seed in range(3):
                yield {"model.width": width, "model.bypass": bypass, "seed": seed}
