"""The comparison in words, which console, Markdown and page share. Read next: `columns.py`."""

from squeezenet_jax.report import tuning
from squeezenet_jax.report.comparison import Comparison, Estimate, half_width


def percent(value: Estimate) -> str:
    if value.mean is None:
        return "–"
    return f"{100 * value.mean:.2f}" + ("" if value.std is None else f" ± {100 * value.std:.2f}")


def points(fraction: float) -> str:
    """A difference in percentage points, with its sign."""
    return f"{round(100 * fraction, 2) + 0.0:+.2f}".replace("-", "−")  # + 0.0: no −0.00


def answer(comparison: Comparison) -> str:
    """The result in one sentence: which row is best, and which differ from the baseline."""
    rows = [row for row in comparison.rows if row.n]
    if not rows:
        return "No run has ended with an evaluation, so there is nothing to compare."
    best = max(rows, key=lambda row: row.top1.mean or 0.0)
    tied = [row for row in rows if row.top1.mean == best.top1.mean]
    if len(tied) == 1:
        text = f"{best.name} has the highest mean top-1, {percent(best.top1)} % (n = {best.n})"
    else:
        names = ", ".join(f"{row.name} (n = {row.n})" for row in tied)
        text = f"{names} share the highest mean top-1, {percent(Estimate(best.top1.mean, None))} %"
    verdicts = {row.name: row.delta.verdict for row in comparison.others}
    if not verdicts:
        return f"{text}."
    differ = [
        f"{row.name} ({points(row.delta.mean or 0.0)} points)"
        for row in comparison.others
        if verdicts[row.name] in ("higher", "lower")
    ]
    if differ:
        return f"{text}; distinguishable from the baseline {comparison.baseline} at 95 %: {', '.join(differ)}."
    if "unclear" in verdicts.values():
        return f"{text}, but no setting is distinguishable from the baseline {comparison.baseline} at 95 %."
    return f"{text}, but there are too few pairs of runs to tell any setting from the baseline {comparison.baseline}."


def footnotes(comparison: Comparison) -> list[str]:
    """What to know before believing the table: its marks, its power, multiplicity, unsound runs."""
    judged = [row for row in comparison.others if row.delta.low is not None]
    pairs = sorted({len(row.differences) for row in judged}) or [0]
    number = str(pairs[0]) if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
    verdicts = [row.delta.verdict for row in comparison.others]
    runs = [run for row in comparison.rows for run in row.runs]
    reach = f"{half_width(pairs[0]):.1f}" if judged else ""
    notes = {
        f"† not distinguishable from the baseline at 95 % ({number} pairs): the interval contains 0. That is no "
        "evidence that the two are equal.": "unclear" in verdicts,
        "‡ not to be judged: a single pair of runs, or the same difference in every pair.": "no interval" in verdicts,
        f"With n = {pairs[0]} pairs only large differences can be seen: an interval reaches {reach} standard "
        "deviations of the differences to either side.": 0 < pairs[0] < 10,
        f"{len(judged)} rows are compared with one baseline, and the intervals are not corrected for multiple "
        "comparisons: of rows that do not differ, 1 in 20 is still expected to seem to.": len(judged) > 1,
        "Stalled: the loss never left that of guessing. Once evaluated, such a run counts like any other.": any(
            run.status == "stalled" for run in runs
        ),
        "Runs that diverged, failed or did not finish are not in n: their row describes only the runs that are left.": (
            not all(run.result for run in runs)
        ),
        "Without evaluation: the run ended, but its metrics do not hold the evaluation of its last step.": any(
            "without evaluation" in row.notes for row in comparison.rows
        ),
        "Not above the majority class: always answering the commonest class would score as much or more.": any(
            not run.beats_majority for run in runs
        ),
    }
    return [text for text, applies in notes.items() if applies] + tuning.notes(comparison)


def count_points(comparison: Comparison) -> str:
    """What one image is worth, as a sentence behind another one; "" where runs were evaluated on different numbers."""
    counts = {int(run.result.get("count", 0)) for row in comparison.rows for run in row.runs if run.result}
    count = counts.pop() if len(counts) == 1 else 0
    unit = "point" if count == 100 else "points"
    return f" One image of {count:,} is {100 / count:.2g} {unit}." if count else ""
