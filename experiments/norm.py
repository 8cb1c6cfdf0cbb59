"""Does a bypass help once the network is normalised: batch, group or no normalisation x bypass?

A plain network of eighteen layers may be hard to train, and a bypass helps it; a normalised one may not need the help.
Cost on digits: 27 runs, about 25 minutes on two cores.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import base

BASELINE = {"model.norm": "none", "model.bypass": "none"}


def get_config(preset: str = base.PRESET) -> ConfigDict:
    return base.get_config(preset)


def sweep() -> Iterator[dict[str, Any]]:
    for norm in ("none", "batch", "group"):
        for bypass in ("none", "simple", "complex"):
            for seed in range(3):
                yield {"model.norm": norm, "model.bypass": bypass, "seed": seed}
