"""How small can it be made, and at what price: density x bits x bypass (Deep Compression, arXiv 1510.00149)?

Each run trains densely, removes its smallest weights and trains the rest, lets the weights of a layer share a few
values and trains those, and writes a compressed file, whose bytes the report has. The report's differences are the
price of that: each to the dense network with the same bypass.

Cost on digits: 42 runs, about 15 minutes on two cores.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import base

DENSE = {"compress.prune": "none", "compress.density": 1.0, "compress.share": "none", "compress.bits": 8}
BASELINE = DENSE


def get_config(preset: str = base.PRESET) -> ConfigDict:
    return base.get_config(preset)


def sweep() -> Iterator[dict[str, Any]]:
    compressions: list[dict[str, Any]] = [DENSE]
    for density in (0.33, 0.15):
        for bits in (6, 4, 3):
            removed = {"compress.prune": "uniform", "compress.density": density}
            compressions.append(removed | {"compress.share": "kmeans", "compress.bits": bits})
    for bypass in ("none", "simple"):
        for compression in compressions:
            for seed in range(3):
                yield compression | {"model.bypass": bypass, "seed": seed}
