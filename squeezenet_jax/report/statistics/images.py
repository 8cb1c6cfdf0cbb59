"""What other test images would have shown: intervals from the outcome of every image (`predictions.npz`). No jax.

h_sj is 1 where the setting's run with seed s has image j right and the baseline's has not, -1 the other way round, and
0 where both are right or both wrong. Their mean over the m seeds and N images is the difference in top-1.
Letters: S seeds (m of them), N images.
"""

import math
from collections.abc import Sequence

import numpy as np

from squeezenet_jax.report.statistics.paired import LEVEL, Delta, paired_delta
from squeezenet_jax.runs.predictions import Predictions

DRAWS = 4_000


def outcome_differences(pairs: Sequence[tuple[Predictions | None, Predictions | None]]) -> np.ndarray | None:
    """h_sj of (setting, baseline) pairs of runs; int8 [S, N], of the images that all of them could read.

    None where a run has no predictions, or where two runs do not agree about an image's label: they evaluated others.
    """
    runs = [run for pair in pairs for run in pair if run is not None]
    if not pairs or len(runs) < 2 * len(pairs):
        return None
    index = runs[0].index
    for run in runs[1:]:
        index = np.intersect1d(index, run.index, assume_unique=True)
    places = [np.searchsorted(run.index, index) for run in runs]
    label = runs[0].label[places[0]]
    if not len(index) or any((run.label[place] != label).any() for run, place in zip(runs, places, strict=True)):
        return None
    hits = np.stack([run.top1[place] for run, place in zip(runs, places, strict=True)]).astype(np.int8)
    return hits[0::2] - hits[1::2]


def images_delta(h_SN: np.ndarray) -> Delta:
    """The mean difference of these very runs, with a 95 % interval over test images.

    The paired percentile bootstrap (B. Efron, R. J. Tibshirani, An introduction to the bootstrap, 1993, ch. 13):
    images are drawn with replacement, each with what all the runs made of it. How often each value of sum_s h_sj is
    drawn is multinomial, so 50,000 images cost no more than 100.
    """
    m, N = h_SN.shape
    values, counts = np.unique(h_SN.sum(0, dtype=np.int64), return_counts=True)
    means = np.random.default_rng(0).multinomial(N, counts / N, DRAWS) @ values / (m * N)
    low, high = np.quantile(means, (LEVEL / 2, 1 - LEVEL / 2))
    return Delta(float(h_SN.mean()), float(low), float(high))


def seeds_and_images_delta(h_SN: np.ndarray) -> Delta:
    """The mean difference with a 95 % interval over seeds and test images.

    d ± sqrt( (t(0.975, m - 1) s_d / sqrt(m))^2 + (1.96 s_J / sqrt(N))^2 ), s_J^2 being the part of the images' variance
    that all seeds share: with h_sj = delta + seed_s + image_j + e_sj, s_J^2 = max(0, var_j(mean_s h_sj) - var(e) / m),
    the method-of-moments estimate of two-way analysis of variance; var(e) is in s_d already. Half-widths are joined by
    their squares (G. Y. Zou, A. Donner, Stat. Med. 27, 2008, p. 1693), so this interval is never narrower than that
    over seeds. A bootstrap of seeds and images is no way around it: three seeds, drawn from themselves, have two thirds
    of their variance and no t quantile (`benchmarks/coverage.py` has what it covers). None with fewer than two seeds.
    """
    m, N = h_SN.shape
    over_seeds = paired_delta([float(mean) for mean in h_SN.mean(1)])
    if over_seeds.mean is None or over_seeds.high is None or N < 2:
        return Delta(over_seeds.mean)
    h = h_SN - h_SN.mean(1, keepdims=True)
    image_N = h.mean(0)
    rest = float(((h - image_N) ** 2).sum()) / ((m - 1) * (N - 1))  # var(e)
    image_variance = max(0.0, float(image_N.var(ddof=1)) - rest / m)
    half = math.hypot(over_seeds.high - over_seeds.mean, 1.96 * math.sqrt(image_variance / N))
    return Delta(over_seeds.mean, over_seeds.mean - half, over_seeds.mean + half)
