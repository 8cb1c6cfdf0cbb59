"""Does training dense, then sparse, then dense again (DSD, arXiv 1607.04381) beat plain training of the same length?

Half of the weights are removed for the middle of the training, and grow again from 0 for the last third.

Cost on digits: 6 runs, two minutes on two cores.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import base

BASELINE = {"compress.prune": "none"}


def get_config(preset: str = base.PRESET) -> ConfigDict:
    sparse_between = {"compress.prune_from": 0.33, "compress.prune_until": 0.33, "compress.dense_from": 0.67}
    return base.get_config(preset, sparse_between | {"compress.density": 0.5})


def sweep() -> Iterator[dict[str, Any]]:
    for prune in ("none", "uniform"):
        for seed in range(3):
            yield {"compress.prune": prune, "seed": seed}
