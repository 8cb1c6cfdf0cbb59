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
    count_K = _counts(source)
    if count_K is None:
        return None
    share_K = count_K / count_K.sum()
    return Distribution(int(count_K.sum()), _entropy(share_K), float(share_K.max()), int(share_K.argmax()))


def entropy(source: sources.Source, *, smoothing: float = 0.0, num_classes: int = 0) -> float | None:
    """H(p) of a split's labels, nats; None where it would take long to read them.

    With label smoothing, which spreads a share over all of `num_classes`, p is the mean of what labels then say.
    """
    count_K = _counts(source, num_classes)
    if count_K is None:
        return None
    return _entropy((1 - smoothing) * (count_K / count_K.sum()) + (smoothing / num_classes if smoothing else 0.0))


def _counts(source: sources.Source, num_classes: int = 0) -> Any:
    """How many images each class has, of `num_classes` at least; None where it would take long to know."""
    label_N: Any
    if isinstance(source, sources.InMemory):
        label_N = np.delete(source.label, [place for place, _ in source.unreadable])
    else:
        label_N = source.records.labels if isinstance(source, sources.Encoded) else None
    return None if label_N is None or not len(label_N) else np.bincount(label_N, minlength=num_classes)


def _entropy(share_K: Any) -> float:
    share_K = share_K[share_K > 0]
    return float(-np.sum(share_K * np.log(share_K)))


def distributions(data: DataSettings) -> dict[str, dict[str, Any] | None]:
    """The distributions of the splits "train" and "eval" as JSON has them."""
    found = {which: distribution(sources.load(data, f"{which}_split")) for which in ("train", "eval")}
    return {which: None if one is None else dataclasses.asdict(one) for which, one in found.items()}
