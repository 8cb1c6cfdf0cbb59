"""The comparison of an experiment's finished runs, in numbers. No jax.

A *row* is one setting; its runs differ in their seed only. With a_s the top-1 of seed s, b_s that of the baseline row,
n the runs of the row that ended with an exact evaluation and m the seeds for which both rows have one:

    top-1 = mean_s(a_s) ± std_s(a_s)                              (n - 1 in the denominator)
    delta = mean_s(d_s) ± t(0.975, m - 1) std_s(d_s) / sqrt(m)    with d_s = a_s - b_s

The baseline differs from the row in what the experiment contrasts and in nothing else (`contrasted`). What more the
pairs say, about all rows at once and about other test images, is a row's `Evidence`.

Accuracies and deltas are fractions (0 to 1) here; people read percent and percentage points. Read next: `evidence.py`,
then `wording.py`.
"""

import collections
import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from squeezenet_jax.report.statistics.evidence import Evidence, Pair, gather
from squeezenet_jax.report.statistics.paired import MARGIN, NO_WIDTH, Delta
from squeezenet_jax.runs.predictions import Predictions
from squeezenet_jax.system.errors import unknown

COUNTED = ("done", "stalled")  # a stalled run was trained and evaluated like any other: leaving it out would flatter
# Every other status, in the order in which notes name them; "killed" is "running" with nobody who runs it.
STATUSES = ("stalled", "diverged", "failed", "hung", "killed", "preempted", "running", "missing")
TOP5_CLASSES = 6  # of fewer classes, the five best are all there are


@dataclasses.dataclass(frozen=True)
class Run:
    """One run as read from its directory."""

    setting: str  # the row's name, e.g. "bypass=simple"
    overrides: Mapping[str, object]  # flat, without the seed, e.g. {"model.bypass": "simple"}
    seed: int
    status: str  # "done" or one of STATUSES
    params: int
    macs: int
    final: Mapping[str, float] | None  # loss, top1, top5, count, and what was said of speed; None: no exact evaluation
    train_curve: Sequence[Mapping[str, float]] = ()  # step, epoch, loss, top1
    eval_curve: Sequence[Mapping[str, float]] = ()  # step, epoch, loss, top1, top5
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # all of them, flat: "train.batch_size"
    started: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # its run.json; empty before it is started
    images: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of "train" and "eval"; empty: not known
    majority: float | None = None  # what always answering the evaluation's commonest class would score
    predictions: Predictions | None = None  # what became of each image; None in runs of earlier versions

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
class Row:
    """One setting and what its seeds say about it."""

    name: str
    baseline: str  # the row that it is compared with; its own name if it is a baseline
    overrides: Mapping[str, object]
    runs: tuple[Run, ...]  # all of them
    seeds: tuple[int, ...]  # of the runs that count
    top1: Estimate
    top5: Estimate
    pairs: Mapping[int, Pair]  # by seed, with the baseline's run of the same seed
    params: int
    macs: int
    bytes: float  # of the file of its weights: compressed, or 4 for each parameter
    images_per_second: float | None
    notes: str  # what is wrong with the row; "" if nothing is
    evidence: Evidence = dataclasses.field(default_factory=Evidence)  # what its pairs say

    @property
    def is_baseline(self) -> bool:
        return self.name == self.baseline

    @property
    def delta(self) -> Delta:
        return self.evidence.delta

    @property
    def differences(self) -> tuple[float, ...]:
        """In top-1, to the baseline's run with the same seed."""
        return tuple(pair.difference for pair in self.pairs.values())

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
    baseline: str  # what the others are compared with: a row, or the values that it differs in
    rows: tuple[Row, ...]
    margin: float = MARGIN / 100  # the smallest difference that matters

    @property
    def is_compressed(self) -> bool:
        """Whether the weights of a row are in a compressed file."""
        return any(row.is_compressed for row in self.rows)

    @property
    def others(self) -> list[Row]:
        return [row for row in self.rows if not row.is_baseline]


def compare(
    experiment: str, preset: str, baseline: str, runs: Iterable[Run], margin: float = MARGIN / 100
) -> Comparison:
    """Groups the runs into rows and compares each with its baseline, seed by seed.

    Args:
      baseline: The name of the row that all others are compared with, "norm=none,bypass=none"; or a part of it,
        "bypass=none": each is then compared with the row that has these values and else its own.
      margin: The smallest difference that matters, a fraction.

    Raises `UserError` if there is no baseline, ValueError if the runs of a row are not one setting with distinct seeds.
    """
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.setting, []).append(run)
    baselines = {name: baseline if baseline in grouped else contrasted(name, baseline) for name in grouped}
    if all(name != other for name, other in baselines.items()):
        raise unknown("baseline", baseline, grouped)
    rows = [_row(name, group, baselines[name], grouped.get(baselines[name], [])) for name, group in grouped.items()]
    others = [row for row in rows if not row.is_baseline]
    evidence = iter(gather([(row.baseline, row.pairs) for row in others], margin))
    rows = [row if row.is_baseline else dataclasses.replace(row, evidence=next(evidence)) for row in rows]
    return Comparison(experiment, preset, baseline, tuple(rows), margin)


def contrasted(setting: str, baseline: str) -> str:
    """The row that a setting is compared with: the same, but for the values that the baseline names.

    >>> contrasted("norm=batch,bypass=simple", "bypass=none")
    'norm=batch,bypass=none'
    """
    values = {key: value for key, _, value in (part.partition("=") for part in setting.split(","))}
    named = {key: value for key, _, value in (part.partition("=") for part in baseline.split(","))}
    if not named.keys() <= values.keys():
        return baseline
    return ",".join(f"{key}={value}" for key, value in (values | named).items())


def _row(name: str, runs: Sequence[Run], baseline: str, references: Sequence[Run]) -> Row:
    first = runs[0]
    if len({run.seed for run in runs}) < len(runs):
        raise ValueError(f'"{name}": two runs have the same seed; seeds: {[run.seed for run in runs]}')
    if any((run.params, run.macs, run.overrides) != (first.params, first.macs, first.overrides) for run in runs):
        raise ValueError(f'"{name}": its runs differ in more than their seed')
    results = {run.seed: run.result for run in runs if run.result}
    pairs = {} if name == baseline else _pairs(runs, references)
    has_top5 = first.settings.get("data.num_classes", TOP5_CLASSES) >= TOP5_CLASSES
    speeds = [final["images_per_second"] for final in results.values() if "images_per_second" in final]
    sizes = [final["bytes"] for final in results.values() if "bytes" in final]
    known = dict.fromkeys(["done", *STATUSES], 0)
    notes = {**known, **collections.Counter(run.status for run in runs), "done": 0}
    notes["without evaluation"] = sum(run.status in COUNTED and not run.result for run in runs)
    notes["not above the majority class"] = sum(not run.beats_majority for run in runs)
    if first.settings.get("compress.share", "none") != "none":
        lacking = len(results) - len(sizes)
        notes["without network.sqz" + ": MiB as if not compressed" * (not sizes)] = lacking
    texts = [f"{count} {what}" for what, count in notes.items() if count]
    if name != baseline and len(pairs) < len(results):
        texts.append(f"{len(pairs)} paired")
    return Row(
        name=name,
        baseline=baseline,
        overrides=first.overrides,
        runs=tuple(runs),
        seeds=tuple(results),
        top1=_estimate([final["top1"] for final in results.values()]),
        top5=_estimate([final["top5"] for final in results.values() if has_top5]),
        pairs=pairs,
        params=first.params,
        macs=first.macs,
        bytes=_estimate(sizes).mean or 4 * first.params,
        images_per_second=_estimate(speeds).mean,
        notes=", ".join(texts),
    )


def _pairs(runs: Sequence[Run], references: Sequence[Run]) -> dict[int, Pair]:
    """By seed, the runs that both rows have a result of."""
    others = {run.seed: run for run in references}
    found = {}
    for run in runs:
        other = others.get(run.seed)
        if run.result and other and other.result:
            top1 = run.result["top1"], other.result["top1"]
            found[run.seed] = Pair(top1, (run.predictions, other.predictions))
    return found


def _estimate(values: Sequence[float]) -> Estimate:
    mean = statistics.fmean(values) if values else None
    return Estimate(mean, statistics.stdev(values) if len(values) > 1 else None)
