"""What do ImageNet weights give on another task with few examples: from scratch or fine-tuned, and how much frozen?

python launch.py --config experiments/finetune.py --config.model.init_from=WEIGHTS
where WEIGHTS is DeepScale's v1.1, or anything of that shape that `python -m squeezenet_jax convert` reads.

Cost on fashion_mnist_64: 12 runs, about half an hour on two cores (by MACs, from bypass.py's five minutes).
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import base

BASELINE = {"model.start": "scratch", "model.freeze": "none"}
REQUIRED = {"model.init_from": "a weights file"}


PRESET = "fashion_mnist_64"
EXPERIMENT = {
    "model.version": "v1.1",
    "model.geometry": "caffe",
    "model.norm": "none",  # no published weights have one
    "optimizer.name": "adamw",  # the rate is one of adamw's
    "optimizer.peak_lr": 5e-4,
}
FEW_EXAMPLES = {"data.train_split": "train[:4%]"}  # 2,400 of Fashion-MNIST's 60,000; other presets keep all of theirs


def get_config(preset: str = PRESET) -> ConfigDict:
    return base.get_config(preset, EXPERIMENT | (FEW_EXAMPLES if preset == PRESET else {}))


def sweep() -> Iterator[dict[str, Any]]:
    for start, freeze in (("scratch", "none"), ("init_from", "none"), ("init_from", "fire5"), ("init_from", "fire9")):
        for seed in range(3):
            yield {"model.start": start, "model.freeze": freeze, "seed": seed}
