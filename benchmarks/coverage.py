"""How often the report's intervals contain the truth, in simulated sweeps: 95 of 100 is what they claim.

    python benchmarks/coverage.py [--sweeps 2000] [--json FILE]

Each sweep has a baseline and k settings that do not differ from it, n seeds each. A run's top-1 is its setting's mean,
plus what all runs of its seed share, plus noise of its own; a scenario says how large the noise of each setting is. In
the sweeps over images, a quarter as many, a run has an image right where the sum of four normal numbers is positive:
one of the run, one of the image, one of setting and image (some images are easier with a bypass), one of run and image.
Whether the intervals of *all* settings hold together is counted where the table says so. About ten minutes on one core;
`tests/report/test_coverage.py` runs a part of it.
"""

import argparse
import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

from squeezenet_jax.report.statistics import images
from squeezenet_jax.report.statistics.evidence import Evidence, Pair, gather
from squeezenet_jax.report.statistics.paired import Interval, paired_delta

SWEEPS = 2_000
MARGIN = 0.005


@dataclasses.dataclass(frozen=True)
class Scenario:
    name: str
    noise: tuple[float, ...]  # of the baseline, then of each setting, in points
    seeds: int


NOISES = {
    "equal noise, 2 settings": (0.3,) * 3,
    "equal noise, 8 settings": (0.3,) * 9,
    "one of 2 settings five times as noisy": (0.3, 0.3, 1.5),
    "baseline of 8 settings five times as noisy": (1.5,) + (0.3,) * 8,
    "baseline of 8 settings five times as quiet": (0.3,) + (1.5,) * 8,
    "8 settings, noise from 0.1 to 3": tuple(np.geomspace(0.1, 3, 9).tolist()),
}
SCENARIOS = tuple(Scenario(name, noise, seeds) for name, noise in NOISES.items() for seeds in (3, 5, 20))


def sweeps(scenario: Scenario, count: int) -> Iterator[np.ndarray]:
    """Top-1 [settings + 1, seeds] of so many sweeps without a difference, the baseline first."""
    rng = np.random.default_rng(0)
    noise = np.array(scenario.noise)[:, None] / 100
    for _ in range(count):
        shared = 0.01 * rng.standard_normal(scenario.seeds)
        yield 0.9 + shared + noise * rng.standard_normal((len(noise), scenario.seeds))


def evidence_of(top1: np.ndarray) -> list[Evidence]:
    """What the report says of each setting."""
    pairs = [
        {s: Pair((float(a), float(b))) for s, (a, b) in enumerate(zip(row, top1[0], strict=True))} for row in top1[1:]
    ]
    return gather([("baseline", of_row) for of_row in pairs], MARGIN)


def holds(interval: Interval, truth: float = 0.0) -> bool:
    assert interval.low is not None and interval.high is not None
    return interval.low <= truth <= interval.high


def pooled_dunnett(top1: np.ndarray, critical: float) -> bool:
    """Whether all of Dunnett's own intervals hold: one variance for all, from the two-way table of rows and seeds."""
    k, n = len(top1) - 1, top1.shape[1]
    rest = top1 - top1.mean(0) - top1.mean(1, keepdims=True) + top1.mean()
    half = critical * math.sqrt(2 * (rest**2).sum() / (k * (n - 1)) / n)
    return bool((abs(top1[1:].mean(1) - top1[0].mean()) <= half).all())


@functools.cache
def dunnett_critical(k: int, freedom: int) -> float:
    """The 95 % quantile of max_i |t_i| with correlation 1/2 and one variance, simulated."""
    rng, draws = np.random.default_rng(1), 200_000
    z = rng.standard_normal((draws, k + 1))
    t = (z[:, 1:] - z[:, :1]) / math.sqrt(2) / np.sqrt(rng.chisquare(freedom, (draws, 1)) / freedom)
    return float(np.quantile(abs(t).max(1), 0.95))


def coverage(scenario: Scenario, count: int = SWEEPS) -> dict[str, float]:
    """Shares of the sweeps: in which the intervals hold, and in which Holm's p-values claim nothing."""
    k, n = len(scenario.noise) - 1, scenario.seeds
    critical = dunnett_critical(k, k * (n - 1))
    found: dict[str, list[float]] = {}
    for top1 in sweeps(scenario, count):
        evidence = evidence_of(top1)
        differences = [list(row - top1[0]) for row in top1[1:]]
        outcome = {
            "one row": float(np.mean([holds(e.delta) for e in evidence])),
            "all rows, uncorrected": all(holds(e.delta) for e in evidence),
            "all rows (the report's)": all(holds(e.delta_all) for e in evidence),
            "all rows, Bonferroni": all(holds(paired_delta(d, 0.05 / k)) for d in differences),
            "all rows, pooled Dunnett": pooled_dunnett(top1, critical),
            "Holm claims nothing": all(e.p_holm is None or e.p_holm >= 0.05 for e in evidence),
            "beats": float(np.mean([holds(e.beats, 0.5) for e in evidence])),
        }
        for name, value in outcome.items():
            found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def image_sweeps(seeds: int, count: int, size: int, run: float = 0.1) -> Iterator[np.ndarray]:
    """h_sj [seeds, images] of a setting and a baseline that do not differ; about 90 % of the images are right."""
    rng = np.random.default_rng(2)
    for _ in range(count):
        image = rng.standard_normal(size)
        right = [
            1.8
            + run * rng.standard_normal((seeds, 1))  # of a run
            + image
            + 0.5 * rng.standard_normal(size)  # of setting and image
            + 0.5 * rng.standard_normal((seeds, size))
            > 0
            for _ in range(2)
        ]
        yield right[0].astype(np.int8) - right[1].astype(np.int8)


def bootstrap_of_both(h_SN: np.ndarray, rng: np.random.Generator, draws: int = 500) -> Interval:
    """The percentile interval of means over seeds and images that are both drawn with replacement."""
    m, N = h_SN.shape
    seeds = rng.multinomial(m, [1 / m] * m, draws) / m
    patterns, counts = np.unique(h_SN, axis=1, return_counts=True)  # images of which all runs made the same
    drawn = rng.multinomial(N, counts / N, draws) / N
    means = np.einsum("dp,dp->d", seeds @ patterns, drawn)
    return Interval(float(h_SN.mean()), *map(float, np.quantile(means, (0.025, 0.975))))


def image_coverage(seeds: int, count: int = SWEEPS, size: int = 1_000, run: float = 0.1) -> dict[str, float]:
    """Shares of the sweeps in which the interval holds the difference over all seeds and images, which is 0."""
    rng = np.random.default_rng(3)
    methods: dict[str, Callable[[np.ndarray], Interval]] = {
        "seeds alone": lambda h: paired_delta([float(mean) for mean in h.mean(1)]),
        "images alone": images.images_delta,
        "seeds and images (the report's)": images.seeds_and_images_delta,
        "bootstrap of both": lambda h: bootstrap_of_both(h, rng),
    }
    found: dict[str, list[bool]] = {name: [] for name in methods}
    for h_SN in image_sweeps(seeds, count, size, run):
        for name, method in methods.items():
            found[name].append(holds(method(h_SN)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def table(rows: Sequence[tuple[str, int, dict[str, float]]]) -> str:
    names = list(rows[0][2])
    lines = ["| sweeps | seeds | " + " | ".join(names) + " |", "|---|---:|" + "---:|" * len(names)]
    for what, seeds, found in rows:
        lines.append(f"| {what} | {seeds} | " + " | ".join(f"{100 * found[name]:.1f}" for name in names) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=SWEEPS, help="of each scenario (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the shares to FILE")
    options = parser.parse_args()
    error = 100 * stats.norm.ppf(0.975) * math.sqrt(0.95 * 0.05 / options.sweeps)
    print(f"Percent of {options.sweeps:,} sweeps, each without a difference; chance alone moves 95 by ±{error:.1f}.\n")
    rows = [(s.name, s.seeds, coverage(s, options.sweeps)) for s in SCENARIOS]
    print(table(rows) + "\n")
    image_rows = [
        (f"1,000 images, runs deviate by {run:g}", seeds, image_coverage(seeds, options.sweeps // 4, run=run))
        for run in (0.0, 0.1)
        for seeds in (3, 5, 20)
    ]
    print(table(image_rows))
    if options.json:
        options.json.write_text(json.dumps([*rows, *image_rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
