"""The comparisons of several presets of one experiment side by side: what a setting gives on each. No jax."""

from collections.abc import Sequence
from typing import Any

from squeezenet_jax.report.columns import COLUMNS, Column
from squeezenet_jax.report.comparison import Comparison, Row

SIDE_BY_SIDE = [column for column in COLUMNS if column.name in ("top1", "delta")]


def title(comparisons: Sequence[Comparison]) -> str:
    """ "bypass on digits", "bypass on cifar10 and digits"."""
    return f"{comparisons[0].experiment} on {' and '.join(comparison.preset for comparison in comparisons)}"


def table(comparisons: Sequence[Comparison]) -> tuple[list[str], dict[str, list[tuple[str, Any, str]]]]:
    """(headings, the (text, value, kind) of each cell by setting): two columns for each preset."""
    headings = [f"{comparison.preset}: {column.title}" for comparison in comparisons for column in SIDE_BY_SIDE]
    rows = [{row.name: row for row in comparison.rows} for comparison in comparisons]

    def cell(column: Column, row: Row | None) -> tuple[str, Any, str]:
        return ("–", None, "") if row is None else (column.text(row), column.value(row), column.kind(row))

    names = dict.fromkeys(name for each in rows for name in each)
    cells = {name: [cell(column, each.get(name)) for each in rows for column in SIDE_BY_SIDE] for name in names}
    return ["setting", *headings], cells
