"""The comparison in words, which console, Markdown and page share. Read next: `columns.py`."""

from collections.abc import Sequence

from squeezenet_jax.report import tuning
from squeezenet_jax.report.comparison import Comparison, Estimate, Row
from squeezenet_jax.report.conditions import varied
from squeezenet_jax.report.statistics.paired import LEVEL, Delta, detectable, pairs_needed

POWERED = (0.25, 0.5, 1.0)  # standard deviations of the differences, in points, that a plan is judged for


def percent(value: Estimate) -> str:
    if value.mean is None:
        return "–"
    return f"{100 * value.mean:.2f}" + ("" if value.std is None else f" ± {100 * value.std:.2f}")


def points(fraction: float) -> str:
    """A difference in percentage points, with its sign."""
    return f"{round(100 * fraction, 2) + 0.0:+.2f}".replace("-", "−")  # + 0.0: no −0.00


def unsigned(fraction: float | None) -> str:
    """A size in percentage points: "0.5", "12"; two digits are all that a few seeds can tell."""
    if fraction is None:
        return "–"
    value = 100 * fraction
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def interval(delta: Delta) -> str:
    """ "[−0.20, +1.30]" in percentage points; "" where there is none."""
    return "" if delta.low is None or delta.high is None else f"[{points(delta.low)}, {points(delta.high)}]"


def p_text(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def compared_with(comparison: Comparison) -> str:
    """The row that all others are compared with, or which one each is."""
    if any(row.name == comparison.baseline for row in comparison.rows):
        return comparison.baseline
    return f"the row that has {comparison.baseline} and else the same values, run"


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
    told = [row for row in comparison.others if verdicts[row.name] in ("higher", "lower")]
    differ = [row for row in told if row.evidence.p_holm is None or row.evidence.p_holm < LEVEL]
    alone = [row for row in told if row not in differ]
    if differ:
        text += f"; distinguishable from the baseline {comparison.baseline} at 95 %: {_with_points(differ)}"
    elif alone:
        text += f", but of all rows at once none is distinguishable from the baseline {comparison.baseline} at 95 %"
    elif "unclear" in verdicts.values():
        text += f", but no setting is distinguishable from the baseline {comparison.baseline} at 95 %"
    else:
        text += f", but there are too few pairs of runs to tell any setting from the baseline {comparison.baseline}"
    if alone:
        text += f"; only by its own interval, not adjusted for the number of rows: {_with_points(alone)}"
    if same := [row.name for row in comparison.others if row.evidence.is_equivalent]:
        text += f"; no difference of {unsigned(comparison.margin)} points or more: {', '.join(same)}"
    return f"{text}."


def _with_points(rows: Sequence[Row]) -> str:
    return ", ".join(f"{row.name} ({points(row.delta.mean or 0.0)} points)" for row in rows)


def footnotes(comparison: Comparison) -> list[str]:
    """What to know before believing the table: its marks, its power, multiplicity, unsound runs."""
    judged = [row for row in comparison.others if row.delta.low is not None]
    pairs = sorted({len(row.differences) for row in judged}) or [0]
    number = str(pairs[0]) if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
    verdicts = [row.delta.verdict for row in comparison.others]
    runs = [run for row in comparison.rows for run in row.runs]
    without = sum(run.result is not None and run.predictions is None for run in runs)
    notes = {
        f"† not distinguishable from the baseline at 95 % ({number} pairs): the interval contains 0. That is no "
        "evidence that the two are equal.": "unclear" in verdicts,
        "‡ not to be judged: a single pair of runs, or the same difference in every pair.": "no interval" in verdicts,
        f"≈ no difference of {unsigned(comparison.margin)} points or more, either way, by two one-sided tests at 5 % "
        "that are adjusted for the number of rows.": any(row.evidence.is_equivalent for row in comparison.others),
        _power(comparison, number): any(row.evidence.detectable for row in judged),
        _at_once(judged): len(judged) > 1,
        f"Without predictions.npz, as earlier versions left them: {without} runs. What other test images would have "
        "shown is known only for rows in which each run has it.": bool(judged) and without > 0,
        varied(comparison): True,
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
    return [text for text, applies in notes.items() if applies and text] + tuning.notes(comparison)


def _at_once(judged: Sequence[Row]) -> str:
    found = [row.name for row in judged if row.evidence.p_holm is not None and row.evidence.p_holm < LEVEL]
    return (
        f"Each of the {len(judged)} intervals is right for its row alone: of rows that do not differ, 1 in 20 is still "
        f"expected to seem to. Adjusted for their number (Holm), {', '.join(found) or 'none'} can be told from its "
        "baseline."
    )


def _power(comparison: Comparison, pairs: str) -> str:
    """What so many pairs could have shown, by the spread that they had."""
    shown = sorted(row.evidence.detectable for row in comparison.others if row.evidence.detectable is not None)
    needed = [row.evidence.seeds_needed for row in comparison.others if row.evidence.detectable is not None]
    if not shown:
        return ""
    most = "more than any number of" if None in needed else f"{max(filter(None, needed)):,}"
    least = min(filter(None, needed), default=None)
    smallest, largest = unsigned(shown[0]), unsigned(shown[-1])
    size = smallest if smallest == largest else f"{smallest} to {largest}"
    seeds = most if least is None or f"{least:,}" == most else f"{least:,} to {most}"
    return (
        f"With 80 % power, {pairs} pairs that spread as these do show differences of {size} points or more"
        f"{', depending on the row' * (smallest != largest)}; {unsigned(comparison.margin)} points would take {seeds} "
        "seeds."
    )


def planned_power(seeds: int, margin: float) -> str:
    """What a sweep of so many seeds will be able to show, in standard deviations, for nothing has been run yet.

    `margin` is a fraction.
    """
    if seeds < 2:
        return "One seed for each setting: a difference will have no interval. Two are the least, and show little."
    reach = detectable(seeds)
    needed = [(std, pairs_needed(100 * margin / std)) for std in POWERED]
    return (
        f"{seeds} seeds for each setting show differences of {reach:.2g} standard deviations or more (of the paired "
        f"differences) with 80 % power: {unsigned(margin)} points where those deviate by {unsigned(margin / reach)}. "
        f"Where they deviate by {_or([f'{std:g}' for std, _ in needed])} points, it takes "
        f"{_or([f'{n:,}' if n else 'too many' for _, n in needed])} seeds."
    )


def count_points(comparison: Comparison) -> str:
    """What one image is worth, as a sentence behind another one; "" where runs were evaluated on different numbers."""
    counts = {int(run.result.get("count", 0)) for row in comparison.rows for run in row.runs if run.result}
    count = counts.pop() if len(counts) == 1 else 0
    unit = "point" if count == 100 else "points"
    return f" One image of {count:,} is {100 / count:.2g} {unit}." if count else ""


def _or(texts: Sequence[str]) -> str:
    return f"{', '.join(texts[:-1])} or {texts[-1]}"
