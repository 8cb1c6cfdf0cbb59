"""The columns of the report, each declared once: console, Markdown, page, CSV and JSON all derive from `COLUMNS`.

A number more is a field of `comparison.Row` (or an expression over its `runs`) and a `Column` here. Read next:
`files.py` and `page.py`, which lay the columns out.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from squeezenet_jax.report.comparison import Comparison, Row
from squeezenet_jax.report.wording import (
    compared_with,
    count_points,
    footnotes,
    interval,
    p_text,
    percent,
    points,
    unsigned,
)


def _blank(row: Row) -> str:
    return ""


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
      title: What people read above it; "" keeps it out of every table, and it is for report.json and report.csv alone.
      name: The same for programs: the key in report.json. A value that is a mapping is one column of report.csv for
        each of its keys, `name_key`.
      value: What programs read: fractions, counts, None where undefined.
      text: What people read.
      meaning: How to read it, for people who have not read the code; "" where the title says it.
      left: Whether it is words, aligned left; numbers stand right.
      below: On the console, the name of the column under whose text this one stands, without a title.
      narrow_below: The same where the console is narrow, with its title.
      kind: CSS classes of the row's cell; the console knows some of them.
      detail: Whether it is for those who look closer: in a second table, which the console leaves out.
      speed: Whether it is for those who ask what a step costs: in a third table, which the console leaves out as well.
    """

    title: str
    name: str
    value: Callable[[Row], Any]
    text: Callable[[Row], str] = _blank
    meaning: Callable[[Comparison], str] = lambda comparison: ""
    left: bool = False
    below: str = ""
    narrow_below: str = ""
    kind: Callable[[Row], str] = _blank
    detail: bool = False
    speed: bool = False


def _delta(row: Row) -> str:
    if row.delta.mean is None:
        return "baseline" if row.is_baseline else "–"
    mark = {"unclear": " †", "no interval": " ‡"}.get(row.delta.verdict, "")
    if row.evidence.is_equivalent:
        mark = " ≈"
    return f"{points(row.delta.mean)} {interval(row.delta)}".strip() + mark


def _interval_of(field: str) -> Callable[[Row], str]:
    return lambda row: interval(getattr(row.evidence, field)) or "–"


def _as_dict(field: str) -> Callable[[Row], dict[str, float | None]]:
    return lambda row: dataclasses.asdict(getattr(row.evidence, field))


def _beats(row: Row) -> str:
    beats = row.evidence.beats
    if beats.mean is None or beats.low is None or beats.high is None:
        return "–"
    return f"{100 * beats.mean:.0f} [{100 * beats.low:.0f}, {100 * beats.high:.0f}]"


def _macs(row: Row) -> str:
    unit, scale = ("M", 10**6) if row.macs >= 10**6 else ("k", 10**3)
    return f"{row.macs / scale:,.1f} {unit}"


def _mean_of(name: str) -> Callable[[Row], float | None]:
    """Of what the results of a row's runs say under this name."""

    def mean(row: Row) -> float | None:
        said = [run.result[name] for run in row.runs if run.result and name in run.result]
        return statistics.fmean(said) if said else None

    return mean


def _scaled(name: str, factor: float, decimals: int) -> Callable[[Row], str]:
    value = _mean_of(name)
    return lambda row: "–" if (mean := value(row)) is None else f"{factor * mean:,.{decimals}f}"


COLUMNS = (
    Column("setting", "name", lambda row: row.name, lambda row: row.name, left=True),
    Column("", "overrides", lambda row: row.overrides),
    Column("n", "n", lambda row: row.n, lambda row: str(row.n)),
    Column(
        "top-1 %",
        "top1",
        lambda row: dataclasses.asdict(row.top1),
        lambda row: percent(row.top1),
        lambda comparison: (
            "top-1, top-5: percent of the evaluated images, mean ± standard deviation over the n seeds of a row. The "
            f"spread is that between seeds; it says nothing about other images.{count_points(comparison)}"
        ),
    ),
    Column("top-5 %", "top5", lambda row: dataclasses.asdict(row.top5), lambda row: percent(row.top5)),
    Column(
        "Δ top-1 [95 %]",
        "delta",
        lambda row: dataclasses.asdict(row.delta),
        _delta,
        lambda comparison: (
            f"Δ: top-1 minus that of {compared_with(comparison)} with the same seed, averaged over the seeds that both "
            "have; in percentage points, with a 95 % Student-t interval."
        ),
        kind=lambda row: f"wide {row.delta.verdict.split(' ')[0] or 'baseline'}",
    ),
    Column("params", "params", lambda row: row.params, lambda row: f"{row.params:,}"),
    Column(
        "MiB",
        "mib",
        lambda row: row.mib,
        lambda row: f"{row.mib:.2f}" if not row.is_compressed else f"{row.mib:.3f}",
        lambda comparison: (
            f"MiB: the parameters at 4 bytes each{', or the compressed file' * comparison.is_compressed}. MACs: "
            "multiply-adds for one image."
        ),
        narrow_below="params",
    ),
    Column("MACs", "macs", lambda row: row.macs, _macs),
    Column(
        "images/s",
        "images_per_second",
        lambda row: row.images_per_second,
        lambda row: "–" if row.images_per_second is None else f"{row.images_per_second:,.0f}",
        narrow_below="macs",
    ),
    Column(
        "notes",
        "notes",
        lambda row: row.notes,
        lambda row: row.notes,
        left=True,
        below="name",
        kind=lambda row: "wide notes",
    ),
    Column(
        "Δ, all rows at once",
        "delta_all",
        _as_dict("delta_all"),
        _interval_of("delta_all"),
        lambda comparison: (
            "Δ, all rows at once: each row's interval, widened until all hold together in 95 of 100 experiments."
        ),
        detail=True,
    ),
    Column("", "p", lambda row: row.evidence.p),
    Column(
        "p (Holm)",
        "p_holm",
        lambda row: row.evidence.p_holm,
        lambda row: p_text(row.evidence.p_holm),
        lambda comparison: "p (Holm): of no difference, paired t test, adjusted for the number of rows.",
        detail=True,
    ),
    Column(
        "beats %",
        "beats",
        _as_dict("beats"),
        _beats,
        lambda comparison: (
            "beats: the probability that a run scores above its baseline's with the same seed, a tie counting half, "
            "with an exact 95 % interval."
        ),
        detail=True,
    ),
    Column(
        "Δ, other images",
        "delta_images",
        _as_dict("delta_images"),
        _interval_of("delta_images"),
        lambda comparison: (
            "Δ, other images: 95 % interval of the difference that these runs would have on other such images (paired "
            "bootstrap)."
        ),
        detail=True,
    ),
    Column(
        "Δ, other seeds and images",
        "delta_seeds_images",
        _as_dict("delta_seeds_images"),
        _interval_of("delta_seeds_images"),
        lambda comparison: "Δ, other seeds and images: the same with other seeds, too.",
        detail=True,
    ),
    Column(
        "p (as large as the margin)",
        "equivalence_p_holm",
        lambda row: row.evidence.equivalence_p_holm,
        lambda row: p_text(row.evidence.equivalence_p_holm),
        lambda comparison: (
            f"p (as large as the margin): of a difference of {unsigned(comparison.margin)} points or more either way, "
            "two one-sided tests, adjusted for the number of rows (Holm); below 0.05 the row is marked ≈."
        ),
        detail=True,
    ),
    Column(
        "shows points",
        "detectable",
        lambda row: row.evidence.detectable,
        lambda row: unsigned(row.evidence.detectable),
        lambda comparison: (
            "shows points: the smallest difference that so many pairs, spread as they are, show with 80 % power."
        ),
        detail=True,
    ),
    Column(
        "seeds for the margin",
        "seeds_needed",
        lambda row: row.evidence.seeds_needed,
        lambda row: "–" if row.evidence.seeds_needed is None else f"{row.evidence.seeds_needed:,}",
        lambda comparison: (
            f"seeds for the margin: how many would show {unsigned(comparison.margin)} points with 80 % power. The "
            "spread of a few pairs is known roughly: that of three by a factor of 0.5 to 6."
        ),
        detail=True,
    ),
    Column(
        "step ms",
        "step_seconds",
        _mean_of("step_seconds"),
        _scaled("step_seconds", 1e3, 2),
        lambda comparison: (
            "step ms: milliseconds from one training step's end to the next one's, the median of each run, averaged "
            "over the runs; evaluations and checkpoints are not in it."
        ),
        speed=True,
    ),
    Column(
        "step ms, 90 %",
        "step_seconds_p90",
        _mean_of("step_seconds_p90"),
        _scaled("step_seconds_p90", 1e3, 2),
        lambda comparison: "step ms, 90 %: what nine of ten steps stay below.",
        speed=True,
    ),
    Column(
        "device GiB",
        "device_memory_bytes",
        _mean_of("device_memory_bytes"),
        _scaled("device_memory_bytes", 2**-30, 2),
        lambda comparison: "device GiB: the most memory in use on the fullest device, where that is known.",
        speed=True,
    ),
    Column("", "baseline", lambda row: row.baseline),
    Column("", "seeds", lambda row: list(row.seeds)),
    Column("", "pairs", lambda row: len(row.differences)),
)

SHOWN = tuple(column for column in COLUMNS if column.title and not column.detail and not column.speed)
DETAILS = tuple(column for column in COLUMNS if column.detail)
SPEED = tuple(column for column in COLUMNS if column.speed)


def reading(comparison: Comparison) -> list[str]:
    """How to read the table: what its columns mean, then the footnotes."""
    return meanings(SHOWN, comparison) + footnotes(comparison)


def meanings(columns: Iterable[Column], comparison: Comparison) -> list[str]:
    """How to read these columns, without those whose title says it."""
    return [text for column in columns if (text := column.meaning(comparison))]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table behind the first one."""

    title: str
    caption: str
    columns: Sequence[Column]  # the first being the settings
    rows: Sequence[Row]


def further_tables(comparison: Comparison) -> list[Table]:
    """Those that have something to say."""
    paired = [row for row in comparison.others if row.pairs]
    tables = (
        Table("A closer look", "What the pairs of runs say about each difference.", _telling(DETAILS, paired), paired),
        Table("Speed", "What a training step costs.", speed(comparison), comparison.rows),
    )
    return [table for table in tables if table.columns]


def speed(comparison: Comparison) -> list[Column]:
    """The columns of what a step costs."""
    return _telling(SPEED, comparison.rows)


def _telling(columns: Iterable[Column], rows: Sequence[Row]) -> list[Column]:
    """The settings and those columns that have something to say; nothing where none has."""
    told = [column for column in columns if any(column.text(row) != "–" for row in rows)]
    return [COLUMNS[0], *told] if told else []
