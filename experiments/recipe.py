"""How much does each part of a training recipe add, to a network with batch normalisation?

The parts, each by itself: label smoothing, an exponential moving average of the parameters, mixup, cutout, and a linear
schedule instead of the cosine. Beside them stands the network without normalisation; that row compares recipes, too:
the learning rate is the preset's, chosen without a norm, and layers with a norm start from orthogonal kernels where the
others have LSUV's scale. All but the norm and the schedule work against overfitting, so a short training may not show
what they add to a long one. The average over 100 steps is one over fewer until step 890 (`steps.averaged`).

Cost on digits: 21 runs, about ten minutes on two cores (by MACs, from bypass.py's five). On cifar10 with
--config.model.width=0.5 two and a half hours: 18 runs of 16,000 of its 50,000 images took 43 minutes (RESULTS.md).
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import base

PLAIN = {
    "model.norm": "none",
    "optimizer.label_smoothing": 0.0,
    "train.ema_decay": 0.0,
    "data.mixup_alpha": 0.0,
    "data.cutout": 0,
    "optimizer.schedule": "cosine",
}
NORMALISED = PLAIN | {"model.norm": "batch"}
BASELINE = NORMALISED


def get_config(preset: str = base.PRESET) -> ConfigDict:
    return base.get_config(preset)


def sweep(settings: Any) -> Iterator[dict[str, Any]]:
    parts = (
        {"optimizer.label_smoothing": 0.1},  # arXiv 1512.00567, Sec. 7
        {"train.ema_decay": 0.99},
        {"data.mixup_alpha": 0.2},  # arXiv 1710.09412's for ImageNet; for CIFAR-10 it takes 1
        {"data.cutout": settings.data.image_size // 2},  # arXiv 1708.04552's for CIFAR-10
        {"optimizer.schedule": "linear"},
    )
    for row in (PLAIN, NORMALISED, *(NORMALISED | part for part in parts)):
        for seed in range(3):
            yield row | {"seed": seed}
