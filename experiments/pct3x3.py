"""How many of the expand filters must be 3x3: 1 % to 99 %, at squeeze ratio 0.5 (paper Sec. 5.3, Fig. 3b) x bypass?

Five of the paper's nine shares, each without and with the simple bypass.

Cost on digits: 30 runs, about 55 minutes on two cores (by MACs, from bypass.py's five).
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import base

BASELINE = {"model.pct3x3": 0.5}  # with the same bypass


def get_config(preset: str = base.PRESET) -> ConfigDict:
    return base.get_config(preset, {"model.squeeze_ratio": 0.5})


def sweep() -> Iterator[dict[str, Any]]:
    for pct3x3 in (0.01, 0.25, 0.5, 0.75, 0.99):
        for bypass in ("none", "simple"):
            for seed in range(3):
                yield {"model.pct3x3": pct3x3, "model.bypass": bypass, "seed": seed}
