"""The comparison on the console and as files: report.md, report.csv, report.json, report.html."""

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text

from squeezenet_jax.report import across
from squeezenet_jax.report.columns import COLUMNS, SHOWN, Column, further_tables, meanings, reading
from squeezenet_jax.report.comparison import Comparison, Row
from squeezenet_jax.report.conditions import differences, summary
from squeezenet_jax.report.wording import answer, footnotes
from squeezenet_jax.runs.directory import write_text

NARROW = 115  # characters; on a console of fewer a row takes two lines
STYLES = {"higher": "bold", "lower": "bold", "notes": "bold red"}  # on the console, by a cell's kind


def print_table(comparison: Comparison, console: rich.console.Console) -> None:
    """Prints the table, the answer and the footnotes."""
    narrow = console.width < NARROW
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    groups = _stacked(narrow)
    for group in groups:
        header = rich.text.Text("\n".join(column.title for column in group if not column.below))
        left = group[0].left
        table.add_column(header, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in comparison.rows:
        table.add_row(*(_console_cell(group, row, narrow) for group in groups))
    console.print(rich.text.Text(f"{comparison.experiment} on {comparison.preset}", style="bold"))
    if how := summary(comparison):
        console.print(rich.text.Text(how))
    console.print()
    console.print(table)
    console.print(rich.text.Text(f"\n{answer(comparison)}", style="bold"))
    for line in [*footnotes(comparison), *differences(comparison)]:
        console.print(rich.text.Text(line))


def _stacked(narrow: bool) -> list[list[Column]]:
    """The columns by the place that they have on the console: each alone, or below another one."""
    groups: dict[str, list[Column]] = {}
    for column in SHOWN:
        groups.setdefault(column.below or (column.narrow_below if narrow else "") or column.name, []).append(column)
    return list(groups.values())


def _console_cell(group: Iterable[Column], row: Row, narrow: bool) -> rich.text.Text:
    lines = []
    for column in group:
        text = column.text(row)
        if narrow:  # break before ± and [, and allow it behind a comma of the name
            text = re.sub(r",(?! )", ", ", text) if column.left else re.sub(r" (?=[±\[])", "\n", text)
        style = next((STYLES[kind] for kind in column.kind(row).split() if kind in STYLES), "")
        lines += [rich.text.Text(text, style=style)] if text else []
    return rich.text.Text("\n").join(lines)


def markdown(comparison: Comparison) -> str:
    title = f"# {comparison.experiment} on {comparison.preset}"
    notes = [f"- {text}" for text in [*reading(comparison), *differences(comparison)]]
    how = [_escaped(text), ""] if (text := summary(comparison)) else []
    closer: list[str] = []
    for more in further_tables(comparison):
        closer += [*[""] * bool(closer), f"## {more.title}", "", *_markdown_columns(more.columns, more.rows), ""]
        closer += [f"- {text}" for text in meanings(more.columns, comparison)]
    table = _markdown_columns(SHOWN, comparison.rows)
    parts = [title, "", answer(comparison), "", *how, *table, "", "How to read it:", "", *notes, "", *closer]
    return "\n".join([*parts, ""] if closer else parts)


def _markdown_columns(columns: Sequence[Column], rows: Iterable[Row]) -> list[str]:
    texts = ([column.text(row) for column in columns] for row in rows)
    return _markdown_table([column.title for column in columns], [column.left for column in columns], texts)


def _markdown_table(titles: Sequence[str], left: Sequence[bool], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(texts: Iterable[str]) -> str:
        return "| " + " | ".join(map(_escaped, texts)) + " |"

    return [line(titles), "|" + "|".join("---" if each else "---:" for each in left) + "|", *map(line, rows)]


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*<>&|])", r"\\\1", text)


def as_json(comparison: Comparison) -> dict[str, object]:
    """The content of report.json: fractions, and None where a number is undefined."""
    head = {field: getattr(comparison, field) for field in ("experiment", "preset", "baseline", "margin")}
    return {**head, "rows": [_record(row) for row in comparison.rows]}


def _record(row: Row) -> dict[str, Any]:
    record = {column.name: column.value(row) for column in COLUMNS}
    infinite = (math.inf, -math.inf)  # no JSON numbers
    return record | {"overrides": {k: str(v) if v in infinite else v for k, v in row.overrides.items()}}


def as_csv(comparison: Comparison) -> str:
    """report.json's rows, flat: `top1_mean`, `delta_low`, `config.model.bypass`; a list is its items with spaces."""
    return _as_csv(_flat_record(row, comparison) for row in comparison.rows)


def _flat_record(row: Row, comparison: Comparison) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, value in _record(row).items():
        prefix = "config." if name == "overrides" else f"{name}_"
        if isinstance(value, dict):
            record |= {f"{prefix}{key}": part for key, part in value.items()}
        else:
            record[name] = " ".join(map(str, value)) if isinstance(value, list) else value
    return record | {"margin": comparison.margin}


def _as_csv(rows: Iterable[dict[str, Any]]) -> str:
    records = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(itertools.chain(*records))), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def write(comparison: Comparison | Sequence[Comparison], workdir: Path) -> None:
    """Writes report.json, report.csv, report.md and report.html to `workdir`, each at once or not at all.

    Several comparisons, of an experiment's presets, share the files: report.json has a list of them as "presets", each
    row of report.csv begins with its preset.
    """
    from squeezenet_jax.report import page  # draws: matplotlib takes a second to import

    comparisons = [comparison] if isinstance(comparison, Comparison) else list(comparison)
    if len(comparisons) == 1:
        record, flat, text = as_json(comparisons[0]), as_csv(comparisons[0]), markdown(comparisons[0])
    else:
        record = {"experiment": comparisons[0].experiment, "presets": [as_json(each) for each in comparisons]}
        flat = _as_csv({"preset": each.preset} | _flat_record(row, each) for each in comparisons for row in each.rows)
        titles, cells = across.table(comparisons)
        rows = ([name, *(shown for shown, *_ in row)] for name, row in cells.items())
        together = _markdown_table(titles, [True, *(False for _ in titles[1:])], rows)
        head = [f"# {across.title(comparisons)}", "", *together, ""]
        text = "\n".join([*head, *(markdown(each) for each in comparisons)])
    write_text(workdir / "report.json", json.dumps(record, indent=2, allow_nan=False, default=str) + "\n")
    write_text(workdir / "report.csv", flat)
    write_text(workdir / "report.md", text)
    write_text(workdir / "report.html", page.page(*comparisons))
