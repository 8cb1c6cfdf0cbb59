"""How many filters may the squeeze layers lose: squeeze ratio from 0.125 to 1 (paper Sec. 5.2, Fig. 3a) x bypass?

A simple bypass carries past the squeeze layers what they lose, so the answer may be another one with it.

Cost on digits: 30 runs, about an hour on two cores (by MACs, from bypass.py's five).
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import base

BASELINE = {"model.squeeze_ratio": 0.125}  # with the same bypass


def get_config(preset: str = base.PRESET) -> ConfigDict:
    return base.get_config(preset)


def sweep() -> Iterator[dict[str, Any]]:
    for squeeze_ratio in (0.125, 0.25, 0.5, 0.75, 1.0):
        for bypass in ("none", "simple"):
            for seed in range(3):
                yield {"model.squeeze_ratio": squeeze_ratio, "model.bypass": bypass, "seed": seed}
