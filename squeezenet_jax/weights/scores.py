"""How logits become top-1 and top-5, and loss and accuracies of logits that are on the host. Needs no jax.

The loss of a training step, and its sums on the devices, are `training/objective.py`'s. Letters: B batch, K classes.
"""

import dataclasses
import math
from typing import Any

import numpy as np


def label_rank(logits_BK: Any, label_B: Any) -> Any:
    """How many classes come before the label when classes are sorted by logit; int32 [B], 0 being a top-1 hit.

    Of NumPy's arrays or of jax's. Equal logits are sorted by class index, as in `argmax`: a dead network (all logits
    equal) then scores 1/K, not 1. A row with a NaN is never a hit.
    """
    xp = logits_BK.__array_namespace__()
    K = logits_BK.shape[-1]
    own = xp.take_along_axis(logits_BK, label_B[:, None], axis=-1)
    earlier = xp.arange(K) < label_B[:, None]
    before = (logits_BK > own) | ((logits_BK == own) & earlier)
    rank = xp.sum(before, axis=-1, dtype=xp.int32)
    return xp.where(xp.isnan(logits_BK).any(-1), 2**31 - 1, rank)


@dataclasses.dataclass
class Scores:
    """Of examples, each of which counts once: cross-entropies, top-1 and top-5 hits."""

    losses: list[float] = dataclasses.field(default_factory=list)
    top1: int = 0
    top5: int = 0

    def add(self, logits_BK: np.ndarray, label_B: np.ndarray) -> None:
        rank_B = label_rank(logits_BK, label_B)
        self.top1 += int((rank_B < 1).sum())
        self.top5 += int((rank_B < 5).sum())
        with np.errstate(invalid="ignore"):  # of infinite logits, the loss is NaN
            above_BK = logits_BK.astype(np.float64) - logits_BK.max(axis=1, keepdims=True)
        loss_B = np.log(np.exp(above_BK).sum(axis=1)) - np.take_along_axis(above_BK, label_B[:, None], axis=1)[:, 0]
        self.losses += loss_B.tolist()

    @property
    def count(self) -> int:
        return len(self.losses)

    def means(self) -> dict[str, Any]:
        """Mean loss and accuracies (fractions), with the count they are over, which must not be 0.

        They do not depend on the order of the examples.
        """
        sums = {"loss": math.fsum(self.losses), "top1": self.top1, "top5": self.top5}
        return {name: value / self.count for name, value in sums.items()} | {"count": self.count}
