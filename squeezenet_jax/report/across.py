"""The comparisons of several presets of one experiment side by side: what a setting gives on each. No jax."""

from collections.abc import Sequence

from squeezenet_jax.report.columns import COLUMNS
from squeezenet_jax.report.comparison import Comparison

SIDE_BY_SIDE = [column for column in COLUMNS if column.name in ("top1", "delta")]


def title(comparisons: Sequence[Comparison]) -> str:
    """ "bypass on digits", "bypass on cifar10 and digits"."""
    return f"{comparisons[0].experiment} on {' and '.join(comparison.preset for comparison in comparisons)}"


def table(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """(headings, rows): a row for each setting of any preset, with two columns for each preset."""
    headings = [f"{comparison.preset}: {column.title}" for comparison in comparisons for column in SIDE_BY_SIDE]
    rows = [{row.name: row for row in comparison.rows} for comparison in comparisons]
    lines = []
    for name in dict.fromkeys(name for each in rows for name in each):
        cells = [column.text(each[name]) if name in each else "–" for each in rows for column in SIDE_BY_SIDE]
        lines.append([name, *cells])
    return ["setting", *headings], lines
