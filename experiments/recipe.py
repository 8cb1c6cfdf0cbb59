"""What does each part of a recipe give: a norm, and with it softer labels, an average, mixed or cut images, a schedule?

The network without any of them, with batch normalisation, and with that and one more of: label smoothing, an average of
the parameters, mixup, cutout, a linear schedule instead of the cosine. The report's differences are to the normalised
network. Most of these work against overfitting, so a short training may not show what they give a long one.

Cost on cifar10 with --config.model.width=0.5: 21 runs, about an hour and a half on two cores (by MACs).
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
    with_one_more = (
        {"optimizer.label_smoothing": 0.1},
        {"train.ema_decay": 0.999},
        {"data.mixup_alpha": 0.2},
        {"data.cutout": settings.data.image_size // 4},
        {"optimizer.schedule": "linear"},
    )
    for row in (PLAIN, NORMALISED, *(NORMALISED | one for one in with_one_more)):
        for seed in range(3):
            yield row | {"seed": seed}
