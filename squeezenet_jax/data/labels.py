"""How the labels of a split are distributed, and so what a network scores that has learned nothing else. No jax.

With p_k the share of class k, answering p for every image has the loss H(p) = -sum_k p_k ln p_k, which is ln K where
all K classes are equally common, and answering the commonest class has the top-1 max_k p_k.
"""

import dataclasses
from typing import Any

import numpy as np

from squeezenet_jax.data import sources
from squeezenet_jax.settings import DataSettings


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Of the labels of a split's images, without those that are already known to be unreadable."""

    images: int
    entropy: float  # H(p), nats
    majority: float  # max_k p_k
    commonest: int  # the first k that has it


def distribution(source: sources.Source) -> Distribution | None:
    """The distribution of a split's labels; None where it would take long to read them."""
    label_N: Any
    if isinstance(source, sources.InMemory):
        label_N = np.delete(source.label, [place for place, _ in source.unreadable])
    else:
        label_N = source.records.labels if isinstance(source, sources.Encoded) else None
    if label_N is None or not len(label_N):
        return None
    count_K = np.bincount(label_N)
    share_K = count_K[count_K > 0] / len(label_N)
    entropy = float(-np.sum(share_K * np.log(share_K)))
    return Distribution(len(label_N), entropy, float(share_K.max()), int(count_K.argmax()))


def entropy(source: sources.Source) -> float | None:
    """H(p) of a split's labels, nats; None where it would take long to read them."""
    found = distribution(source)
    return None if found is None else found.entropy


def distributions(data: DataSettings) -> dict[str, dict[str, Any] | None]:
    """The distributions of the splits "train" and "eval" as JSON has them."""
    found = {which: distribution(sources.load(data, f"{which}_split")) for which in ("train", "eval")}
    return {which: None if one is None else dataclasses.asdict(one) for which, one in found.items()}
