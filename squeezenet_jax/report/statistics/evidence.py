"""What the pairs of runs of all settings say together: each setting's `Evidence`. No jax.

Read next: `paired.py` (one setting), `family.py` (all of them at once), `images.py` (other test images).
"""

import dataclasses
from collections.abc import Mapping, Sequence

from squeezenet_jax.report.statistics import family, images
from squeezenet_jax.report.statistics.paired import (
    LEVEL,
    Delta,
    Interval,
    chance_of_beating,
    detectable,
    equivalence_p,
    p_value,
    paired_delta,
    pairs_needed,
    spread,
)
from squeezenet_jax.runs.predictions import Predictions


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two runs of one seed, a setting's and its baseline's."""

    top1: tuple[float, float]
    predictions: tuple[Predictions | None, Predictions | None] = (None, None)

    @property
    def difference(self) -> float:
        return self.top1[0] - self.top1[1]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """About one setting's difference to its baseline; fields are None where it takes more runs, or predictions."""

    delta: Delta = dataclasses.field(default_factory=Delta)  # for the setting alone
    delta_all: Delta = dataclasses.field(default_factory=Delta)  # intervals that all hold together
    p: float | None = None  # of no difference
    p_holm: float | None = None  # adjusted for the number of settings
    equivalence_p_holm: float | None = None  # of a difference as large as the margin, adjusted in the same way
    beats: Interval = dataclasses.field(default_factory=Interval)  # probability of a higher top-1
    delta_images: Delta = dataclasses.field(default_factory=Delta)  # over test images, of these very runs
    delta_seeds_images: Delta = dataclasses.field(default_factory=Delta)  # over seeds and test images
    detectable: float | None = None  # the smallest difference that so many seeds show with 80 % power
    seeds_needed: int | None = None  # for a difference as large as the margin

    @property
    def is_equivalent(self) -> bool:
        """Whether a difference as large as the margin can be excluded."""
        return self.equivalence_p_holm is not None and self.equivalence_p_holm < LEVEL


def gather(settings: Sequence[tuple[str, Mapping[int, Pair]]], margin: float) -> list[Evidence]:
    """The evidence of each setting, given as (its baseline's name, its pairs by seed), in their order.

    Args:
      margin: The smallest difference that matters, a fraction.
    """
    level = family.simultaneous_level(tuple((baseline, tuple(pairs)) for baseline, pairs in settings))
    differences = [[pair.difference for pair in pairs.values()] for _, pairs in settings]
    p = [p_value(values) for values in differences]
    same = [equivalence_p(values, margin) for values in differences]
    adjusted, same_adjusted = family.holm(p), family.holm(same)
    found = []
    for number, (_, pairs) in enumerate(settings):
        values = differences[number]
        h_SN = images.outcome_differences([pair.predictions for pair in pairs.values()])
        scale = spread(values)
        found.append(
            Evidence(
                delta=paired_delta(values),
                delta_all=paired_delta(values, level),
                p=p[number],
                p_holm=adjusted[number],
                equivalence_p_holm=same_adjusted[number],
                beats=chance_of_beating(values),
                delta_images=Delta() if h_SN is None else images.images_delta(h_SN),
                delta_seeds_images=Delta() if h_SN is None else images.seeds_and_images_delta(h_SN),
                detectable=None if scale is None else scale * detectable(len(values)),
                seeds_needed=None if scale is None else pairs_needed(margin / scale),
            )
        )
    return found
