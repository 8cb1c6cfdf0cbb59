"""Loss and accuracies of logits on the host: what `evaluate` and `export --int8` count. Needs no jax.

`training/objective.py` defines the same inside a compiled step; tests compare the two. Letters: B batch, K classes.
"""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass
class Scores:
    """Sums over examples, each of which counts once: cross-entropy, top-1 and top-5 hits, and their number."""

    loss: float = 0.0
    top1: int = 0
    top5: int = 0
    count: int = 0

    def add(self, logits_BK: np.ndarray, label_B: np.ndarray) -> None:
        own_B1 = np.take_along_axis(logits_BK, label_B[:, None], axis=1)
        # Equal logits are sorted by class; a row with a NaN is never a hit.
        earlier_BK = np.arange(logits_BK.shape[1]) < label_B[:, None]
        rank_B = ((logits_BK > own_B1) | ((logits_BK == own_B1) & earlier_BK)).sum(axis=1)
        rank_B[np.isnan(logits_BK).any(axis=1)] = logits_BK.shape[1] + 5
        with np.errstate(invalid="ignore"):  # of infinite logits, the loss is NaN
            above_BK = logits_BK.astype(np.float64) - logits_BK.max(axis=1, keepdims=True)
        loss_B = np.log(np.exp(above_BK).sum(axis=1)) - np.take_along_axis(above_BK, label_B[:, None], axis=1)[:, 0]
        # float32 in float64: exact, so that the order of the examples is nothing.
        self.loss += float(loss_B.astype(np.float32).sum(dtype=np.float64))
        self.top1 += int((rank_B < 1).sum())
        self.top5 += int((rank_B < 5).sum())
        self.count += len(label_B)

    def means(self) -> dict[str, Any]:
        """Mean loss and accuracies (fractions), with the count they are over, which must not be 0."""
        sums = {"loss": self.loss, "top1": self.top1, "top5": self.top5}
        return {name: value / self.count for name, value in sums.items()} | {"count": self.count}
