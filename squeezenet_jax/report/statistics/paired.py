"""What the differences between paired runs say about one setting: interval, tests, power. No jax.

d_s, for seeds s = 1..m, is what a setting's run scores above its baseline's run with the same seed. The d_s are taken
for independent draws of a normal distribution with mean delta and standard deviation sigma; d is their mean, s_d their
sample standard deviation (m - 1 in the denominator), and t(q, v) the q quantile of Student's t with v degrees of
freedom. Differences are fractions. Read next: `family.py` (many settings at once), `images.py` (other test images).
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence

LEVEL = 0.05  # of every test; intervals are 1 - LEVEL
POWER = 0.8
MARGIN = 0.5  # percentage points: a difference that matters, where an experiment names no MARGIN
MOST_PAIRS = 100_000
NO_WIDTH = 1e-9  # an interval narrower than this has no width but rounding error


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number and its 95 % interval; None where there are too few values."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Delta(Interval):
    """A mean difference and its 95 % interval; None where there are too few values."""

    @property
    def verdict(self) -> str:
        """One of "higher", "lower", "unclear" (0 is in the interval), "no interval" (too little to judge by), ""."""
        if self.mean is None:
            return ""
        if self.low is None or self.high is None:
            return "no interval"
        if self.low <= NO_WIDTH and self.high >= -NO_WIDTH:
            return "unclear"
        if self.high - self.low < NO_WIDTH:  # few images make equal differences likely; they are no certainty
            return "no interval"
        return "higher" if self.low > 0 else "lower"


def paired_delta(differences: Sequence[float], level: float = LEVEL) -> Delta:
    """d ± t(1 - level/2, m - 1) s_d / sqrt(m): Student's interval of the mean, for which it takes two differences."""
    if len(differences) < 2:
        return Delta(differences[0] if differences else None)
    mean, half = statistics.fmean(differences), half_width(len(differences), level) * _std(differences)
    return Delta(mean, mean - half, mean + half)


def half_width(pairs: int, level: float = LEVEL) -> float:
    """t(1 - level/2, m - 1) / sqrt(m): half of an interval, in standard deviations of the m >= 2 differences."""
    return _t_quantile(1 - level / 2, pairs - 1) / math.sqrt(pairs)


def p_value(differences: Sequence[float]) -> float | None:
    """P(|T| >= |d| sqrt(m) / s_d), T of m - 1 degrees of freedom: the two-sided paired t test of delta = 0.

    None for fewer than two differences, and where all are equal: few images make that likely, and it is no certainty.
    """
    error = _standard_error(differences)
    return None if error is None else 2 * _t_below(-abs(statistics.fmean(differences)) / error, len(differences) - 1)


def equivalence_p(differences: Sequence[float], margin: float) -> float | None:
    """The p-value of |delta| >= margin: small where the setting does not differ by the margin, either way.

    Two one-sided t tests, of delta <= -margin and delta >= margin, of which the larger p-value counts (D. J.
    Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987, p. 657). It is below 0.05 where the 90 % interval lies within
    ±margin. None as in `p_value`.
    """
    error = _standard_error(differences)
    if error is None:
        return None
    inside = margin - abs(statistics.fmean(differences))  # the nearer end decides
    return _t_below(-inside / error, len(differences) - 1)


def chance_of_beating(differences: Sequence[float]) -> Interval:
    """The probability that a run of the setting scores above the baseline's of the same seed: share of wins + ties / 2.

    X. Bouthillier et al., Accounting for variance in machine learning benchmarks, MLSys 2021, who compare P(A > B) with
    0.5 and with 0.75, the least that they find worth a claim. Their interval is the percentile bootstrap's, which is
    [1, 1] when three pairs of three are won; this one is exact (C. J. Clopper, E. S. Pearson, Biometrika 26, 1934,
    p. 404): the low end is that of the share of wins, the high end that of wins and ties, at 97.5 % each.
    """
    if not differences:
        return Interval()
    from scipy.special import betaincinv

    m = len(differences)
    wins = sum(difference > NO_WIDTH for difference in differences)
    losses = sum(difference < -NO_WIDTH for difference in differences)
    low = float(betaincinv(wins, m - wins + 1, LEVEL / 2)) if wins else 0.0
    high = float(betaincinv(m - losses + 1, losses, 1 - LEVEL / 2)) if losses else 1.0
    return Interval((wins + (m - wins - losses) / 2) / m, low, high)


def power(pairs: int, effect: float) -> float:
    """With which probability the two-sided paired t test finds delta = effect * sigma.

    P(|T'| > t(0.975, m - 1)), T' of Student's noncentral distribution with noncentrality effect * sqrt(m) (J. Cohen,
    Statistical power analysis for the behavioral sciences, 2nd ed., 1988, ch. 2).
    """
    from scipy.special import nctdtr

    critical, noncentrality = _t_quantile(1 - LEVEL / 2, pairs - 1), effect * math.sqrt(pairs)
    found = 1 - nctdtr(pairs - 1, noncentrality, critical)
    # The other side is below 1e-8 from 5 on, and further out scipy cannot tell.
    return float(found + (nctdtr(pairs - 1, noncentrality, -critical) if noncentrality < 5 else 0.0))


@functools.cache
def detectable(pairs: int) -> float:
    """The smallest |delta| / sigma that m >= 2 pairs show with 80 % power."""
    low, high = 0.0, 1.0
    while power(pairs, high) < POWER:
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if power(pairs, middle) >= POWER else (middle, high)
    return high


def pairs_needed(effect: float) -> int | None:
    """The smallest number of pairs that shows |delta| = effect * sigma with 80 % power; None: above `MOST_PAIRS`."""
    low, high = 1, 2  # the first is too few, and power grows with pairs
    while power(high, effect) < POWER:
        low, high = high, 2 * high
        if low > MOST_PAIRS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, effect) >= POWER else (middle, high)
    return high


def spread(differences: Sequence[float]) -> float | None:
    """s_d; None where it cannot be told from 0, or there are fewer than two differences."""
    found = _std(differences) if len(differences) > 1 else 0.0
    return found if found > NO_WIDTH else None


def _standard_error(differences: Sequence[float]) -> float | None:
    found = spread(differences)
    return None if found is None else found / math.sqrt(len(differences))


def _std(differences: Sequence[float]) -> float:
    mean = statistics.fmean(differences)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in differences) / (len(differences) - 1))


def _t_quantile(q: float, freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, q))


def _t_below(t: float, freedom: float) -> float:
    from scipy.special import stdtr

    return float(stdtr(freedom, t))
