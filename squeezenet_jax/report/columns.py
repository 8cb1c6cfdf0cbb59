"""The columns of the report, each declared once: console, Markdown, page, CSV and JSON all derive from `COLUMNS`.

A number more is a field of `comparison.Row` (or an expression over its `runs`) and a `Column` here. Read next:
`files.py` and `page.py`, which lay the columns out.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from squeezenet_jax.report.comparison import Comparison, Row
from squeezenet_jax.report.wording import count_points, footnotes, percent, points


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


def _delta(row: Row) -> str:
    if row.delta.mean is None:
        return "baseline" if row.is_baseline else "–"
    interval = () if row.delta.low is None or row.delta.high is None else (row.delta.low, row.delta.high)
    mark = {"unclear": " †", "no interval": " ‡"}.get(row.delta.verdict, "")
    return points(row.delta.mean) + (f" [{', '.join(map(points, interval))}]" if interval else "") + mark


def _macs(row: Row) -> str:
    unit, scale = ("M", 10**6) if row.macs >= 10**6 else ("k", 10**3)
    return f"{row.macs / scale:,.1f} {unit}"


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
            f"Δ: top-1 minus that of {comparison.baseline} with the same seed, averaged over the seeds that both have; "
            "in percentage points, with a 95 % Student-t interval."
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
    Column("", "seeds", lambda row: list(row.seeds)),
    Column("", "pairs", lambda row: len(row.differences)),
)

SHOWN = tuple(column for column in COLUMNS if column.title)


def reading(comparison: Comparison) -> list[str]:
    """How to read the table: what its columns mean, then the footnotes."""
    return [text for column in SHOWN if (text := column.meaning(comparison))] + footnotes(comparison)
