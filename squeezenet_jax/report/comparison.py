"""The comparison of an experiment's finished runs, in numbers. No jax.

A *row* is one setting; its runs differ in their seed only. With a_s the top-1 of seed s, b_s that of the baseline row,
n the runs of the row that ended with an exact evaluation and m the seeds for which both rows have one:

    top-1 = mean_s(a_s) ± std_s(a_s)                              (n - 1 in the denominator)
    delta = mean_s(d_s) ± t(0.975, m - 1) std_s(d_s) / sqrt(m)    with d_s = a_s - b_s

Accuracies and deltas are fractions (0 to 1) here; people read percent and percentage points. Read next: `wording.py`.
"""

import collections
import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from squeezenet_jax.system.errors import unknown

COUNTED = ("done", "stalled")  # a stalled run was trained and evaluated like any other: leaving it out would flatter
# Every other status, in the order in which notes name them; "killed" is "running" with nobody who runs it.
STATUSES = ("stalled", "diverged", "failed", "hung", "killed", "preempted", "running", "missing")
TOP5_CLASSES = 6  # of fewer classes, the five best are all there are
NO_WIDTH = 1e-9  # an interval narrower than this has no width but rounding error


@dataclasses.dataclass(frozen=True)
class Run:
    """One run as read from its directory."""

    setting: str  # the row's name, e.g. "bypass=simple"
    overrides: Mapping[str, object]  # flat, without the seed, e.g. {"model.bypass": "simple"}
    seed: int
    status: str  # "done" or one of STATUSES
    params: int
    macs: int
    final: Mapping[str, float] | None  # loss, top1, top5, count, images_per_second; None: no exact evaluation
    train_curve: Sequence[Mapping[str, float]] = ()  # step, epoch, loss, top1
    eval_curve: Sequence[Mapping[str, float]] = ()  # step, epoch, loss, top1, top5
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # all of them, flat: "train.batch_size"
    started: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # its run.json; empty before it is started
    images: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of "train" and "eval"; empty: not known
    majority: float | None = None  # what always answering the evaluation's commonest class would score

    @property
    def result(self) -> Mapping[str, float] | None:
        """The final evaluation, if the run counts."""
        return self.final if self.status in COUNTED else None

    @property
    def beats_majority(self) -> bool:
        """Whether it scores more than always answering the commonest class would, as far as that is known."""
        return self.majority is None or self.result is None or self.result["top1"] > self.majority + NO_WIDTH


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Mean and sample standard deviation; None where there are too few values."""

    mean: float | None
    std: float | None


@dataclasses.dataclass(frozen=True)
class Delta:
    """A mean difference and its 95 % interval; None where there are too few values."""

    mean: float | None
    low: float | None
    high: float | None

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


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting and what its seeds say about it."""

    name: str
    is_baseline: bool
    overrides: Mapping[str, object]
    runs: tuple[Run, ...]  # all of them
    seeds: tuple[int, ...]  # of the runs that count
    top1: Estimate
    top5: Estimate
    delta: Delta
    differences: tuple[float, ...]  # in top-1, to the baseline's run with the same seed
    params: int
    macs: int
    bytes: float  # of the file of its weights: compressed, or 4 for each parameter
    images_per_second: float | None
    notes: str  # what is wrong with the row; "" if nothing is

    @property
    def n(self) -> int:
        return len(self.seeds)

    @property
    def is_compressed(self) -> bool:
        return self.bytes != 4 * self.params

    @property
    def mib(self) -> float:
        return self.bytes / 2**20


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All rows, in the order of the sweep."""

    experiment: str
    preset: str
    baseline: str
    rows: tuple[Row, ...]

    @property
    def is_compressed(self) -> bool:
        """Whether the weights of a row are in a compressed file."""
        return any(row.is_compressed for row in self.rows)

    @property
    def others(self) -> list[Row]:
        return [row for row in self.rows if not row.is_baseline]


def compare(experiment: str, preset: str, baseline: str, runs: Iterable[Run]) -> Comparison:
    """Groups the runs into rows and compares each with the row named `baseline`, seed by seed.

    Raises `UserError` if there is no such row, ValueError if the runs of a row are not one setting with distinct seeds.
    """
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.setting, []).append(run)
    if baseline not in grouped:
        raise unknown("baseline", baseline, grouped)
    reference = {run.seed: run.result["top1"] for run in grouped[baseline] if run.result}
    rows = (_row(name, group, None if name == baseline else reference) for name, group in grouped.items())
    return Comparison(experiment, preset, baseline, tuple(rows))


def _row(name: str, runs: Sequence[Run], reference: Mapping[int, float] | None) -> Row:
    first = runs[0]
    if len({run.seed for run in runs}) < len(runs):
        raise ValueError(f'"{name}": two runs have the same seed; seeds: {[run.seed for run in runs]}')
    if any((run.params, run.macs, run.overrides) != (first.params, first.macs, first.overrides) for run in runs):
        raise ValueError(f'"{name}": its runs differ in more than their seed')
    results = {run.seed: run.result for run in runs if run.result}
    differences = [final["top1"] - reference[s] for s, final in results.items() if s in reference] if reference else []
    has_top5 = first.settings.get("data.num_classes", TOP5_CLASSES) >= TOP5_CLASSES
    speeds = [final["images_per_second"] for final in results.values() if "images_per_second" in final]
    sizes = [final["bytes"] for final in results.values() if "bytes" in final]
    known = dict.fromkeys(["done", *STATUSES], 0)
    notes = {**known, **collections.Counter(run.status for run in runs), "done": 0}
    notes["without evaluation"] = sum(run.status in COUNTED and not run.result for run in runs)
    notes["not above the majority class"] = sum(not run.beats_majority for run in runs)
    texts = [f"{count} {what}" for what, count in notes.items() if count]
    if reference is not None and len(differences) < len(results):
        texts.append(f"{len(differences)} paired")
    return Row(
        name=name,
        is_baseline=reference is None,
        overrides=first.overrides,
        runs=tuple(runs),
        seeds=tuple(results),
        top1=_estimate([final["top1"] for final in results.values()]),
        top5=_estimate([final["top5"] for final in results.values() if has_top5]),
        delta=paired_delta(differences),
        differences=tuple(differences),
        params=first.params,
        macs=first.macs,
        bytes=_estimate(sizes).mean or 4 * first.params,
        images_per_second=_estimate(speeds).mean,
        notes=", ".join(texts),
    )


def _estimate(values: Sequence[float]) -> Estimate:
    mean = statistics.fmean(values) if values else None
    return Estimate(mean, statistics.stdev(values) if len(values) > 1 else None)


def paired_delta(differences: Sequence[float]) -> Delta:
    """The mean of the differences with its 95 % Student-t interval, for which it takes two of them."""
    estimate = _estimate(differences)
    if estimate.mean is None or estimate.std is None:
        return Delta(estimate.mean, None, None)
    half = half_width(len(differences)) * estimate.std
    return Delta(estimate.mean, estimate.mean - half, estimate.mean + half)


def half_width(pairs: int) -> float:
    """t(0.975, m - 1) / sqrt(m): half of a 95 % interval, in standard deviations of the m >= 2 differences."""
    from scipy import stats  # takes a second to import

    return float(stats.t.ppf(0.975, pairs - 1)) / math.sqrt(pairs)
