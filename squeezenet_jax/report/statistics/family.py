"""Many settings compared with a baseline at once: intervals that all hold together, and adjusted p-values. No jax.

With k settings the chance that one of k separate 95 % intervals misses its truth is up to 5k %. C. W. Dunnett (J. Am.
Stat. Assoc. 50, 1955, p. 1096) widens them to where all hold together in 95 of 100 experiments, using that they share
one baseline: with a_is = mu_i + beta_s + e_is, whose noise e is independent of equal variance, the differences
d_is = a_is - a_0s of two settings have the correlation 1/2, whatever the seed has in common (beta_s).

Dunnett pools the variance of all settings. A bypass or a norm that trains badly now and then has many times the
variance of another, and a pooled interval then is too narrow for the one and too wide for the other; so here each
setting keeps its own s_d and its own m - 1 degrees of freedom, as in the interval that is shown for it alone, and all
are widened alike: from level 0.05 to the level alpha for which min_i p_i <= alpha in 5 of 100 experiments without any
difference, p_i being the setting's own paired t test (R. Beran, J. Am. Stat. Assoc. 83, 1988, p. 679, calls such sets
balanced). With one setting alpha is 0.05; it never is below Bonferroni's 0.05 / k, which assumes nothing about
correlations. `benchmarks/coverage.py` shows what it covers, with equal variances and without.
"""

import functools
from collections.abc import Hashable, Sequence

import numpy as np

from squeezenet_jax.report.statistics.paired import LEVEL

DRAWS = 50_000  # of experiments; the coverage is then known to 0.1 %
CHUNK = 2_000
Pattern = tuple[tuple[Hashable, tuple[int, ...]], ...]  # of each setting: its baseline, and the seeds that both have


@functools.lru_cache(maxsize=64)
def simultaneous_level(pattern: Pattern) -> float:
    """The level alpha of each setting's own interval at which all of them hold together in 95 of 100 experiments.

    Simulated, always with the same random numbers: standard normal a_is for the seeds that each setting and its
    baseline have, settings with one baseline sharing it. Settings of fewer than two pairs have no interval and no part.
    """
    from scipy.special import stdtr

    judged = [(baseline, seeds) for baseline, seeds in pattern if len(seeds) > 1]
    if len(judged) < 2:
        return LEVEL
    column = {seed: place for place, seed in enumerate(sorted({seed for _, seeds in judged for seed in seeds}))}
    baselines = {baseline: place for place, baseline in enumerate(dict.fromkeys(baseline for baseline, _ in judged))}
    rng, smallest = np.random.default_rng(0), []
    for _ in range(DRAWS // CHUNK):
        shared = rng.standard_normal((CHUNK, len(baselines), len(column)))
        largest: dict[int, np.ndarray] = {}  # |t| of the settings with so many pairs
        for baseline, seeds in judged:
            own = rng.standard_normal((CHUNK, len(seeds)))
            differences = own - shared[:, baselines[baseline], [column[seed] for seed in seeds]]
            t = abs(differences.mean(1)) / (differences.std(1, ddof=1) / np.sqrt(len(seeds)))
            largest[len(seeds)] = np.maximum(largest.get(len(seeds), 0), t)
        smallest.append(np.min([2 * stdtr(m - 1, -t) for m, t in largest.items()], axis=0))
    return max(float(np.quantile(np.concatenate(smallest), LEVEL)), LEVEL / len(judged))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number, None staying None: below 0.05 in 5 of 100 experiments without a difference.

    S. Holm, Scand. J. Stat. 6, 1979, p. 65: with p_(1) <= ... <= p_(k), that of p_(j) is
    max_{i <= j} min(1, (k - i + 1) p_(i)). Whatever the correlations.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = largest
    return adjusted
