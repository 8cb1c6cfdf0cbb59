"""At the same MACs, is the complex bypass better than a wider network without one?

The complex bypass (paper Sec. 6) adds 1x1 convolutions, so it is compared with a plain network of the same width and
with one that is as much wider as gives it the same MACs: how much follows from the layers of the preset's network. The
report's differences are to the complex bypass.

Cost on digits: 12 runs, about seven minutes on two cores (by MACs, from bypass.py's five).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import base
from squeezenet_jax.network.trace import count
from squeezenet_jax.settings import Settings

BASELINE = {"model.bypass": "complex"}


def get_config(preset: str = base.PRESET) -> ConfigDict:
    return base.get_config(preset)


def sweep(settings: Settings) -> Iterator[dict[str, Any]]:
    width, wider = settings.model.width, width_of_equal_macs(settings)
    for bypass, its_width in (("none", width), ("none", wider), ("simple", width), ("complex", width)):
        for seed in range(3):
            yield {"model.bypass": bypass, "model.width": its_width, "seed": seed}


def width_of_equal_macs(settings: Settings) -> float:
    """The width, in hundredths of the settings' own, at which the plain network's MACs are nearest to the complex's."""
    width, target = settings.model.width, macs(settings, "complex", settings.model.width)
    wider = [width * percent / 100 for percent in range(101, 301)]
    return min(wider, key=lambda width: abs(macs(settings, "none", width) - target))


def macs(settings: Settings, bypass: str, width: float) -> int:
    """Of one image."""
    model = dataclasses.replace(settings.model, bypass=bypass, width=width)
    return count(dataclasses.replace(settings, model=model).trace())[1]
