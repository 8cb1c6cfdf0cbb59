"""Does a bypass help once the network is normalised: batch, group or no normalisation x bypass?

A plain network of eighteen layers may be hard to train, and a bypass helps it; a normalised one may not need the help.
The report's differences are what a bypass gives within a norm: each to the plain network with the same norm. Between
norms, the means can be compared, but that compares recipes, too: the learning rate is the preset's, chosen without
norms, and layers with a norm start from orthogonal kernels where the others have LSUV's scale. "group" has 16 channels
or more in a group (`architecture.group_size`); narrow layers are one group.
Cost on digits: 27 runs, about 25 minutes on two cores.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import base

BASELINE = {"model.bypass": "none"}


def get_config(preset: str = base.PRESET) -> ConfigDict:
    return base.get_config(preset)


def sweep() -> Iterator[dict[str, Any]]:
    for norm in ("none", "batch", "group"):
        for bypass in ("none", "simple", "complex"):
            for seed in range(3):
                yield {"model.norm": norm, "model.bypass": bypass, "seed": seed}
