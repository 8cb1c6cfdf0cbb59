"""Which initialiser lets which bypass train: LSUV, He, Glorot or LeCun x bypass?

Without normalisation layers the signal of a plain network fades from layer to layer or grows, and a bypass makes it
grow; the initialiser decides by how much. `launch.py --config experiments/init.py --signal` shows it before anything
is trained: the scale of every layer's output and of the loss's gradient there. The learning rate is the preset's,
which was chosen with LSUV.

Cost on digits: 60 runs, about 33 minutes on two cores (by MACs, from bypass.py's five).
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import base

BASELINE = {"model.kernel_init": "lsuv"}  # with the same bypass


def get_config(preset: str = base.PRESET) -> ConfigDict:
    return base.get_config(preset, {"model.conv10_init": "same"})


def sweep() -> Iterator[dict[str, Any]]:
    for kernel_init in ("lsuv", "he_uniform", "glorot_uniform", "lecun_uniform"):
        for bypass in ("none", "simple", "complex"):
            for seed in range(5):
                yield {"model.kernel_init": kernel_init, "model.bypass": bypass, "seed": seed}
