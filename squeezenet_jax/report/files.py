"""The comparison on the console and as files: report.md, report.csv, report.json, report.html."""

import csv
import dataclasses
import io
import itertools
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text

from squeezenet_jax.report.comparison import Comparison, Row
from squeezenet_jax.report.wording import HEADERS, answer, cells, footnotes, reading
from squeezenet_jax.runs.directory import write_text


def print_table(comparison: Comparison, console: rich.console.Console) -> None:
    """Prints the table, the answer and the footnotes; on a narrow console a row takes two lines."""
    narrow = console.width < 115
    groups = ((0, 9), (1,), (2,), (3,), (4,), *(((5, 6), (7, 8)) if narrow else ((5,), (6,), (7,), (8,))))
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for group in groups:
        header = rich.text.Text("\n".join(HEADERS[i] for i in group if i < 9))
        table.add_column(header, justify="right" if group[0] else "left", no_wrap=group[0] > 0, overflow="fold")
    for row in comparison.rows:
        styles = {4: "bold" if row.delta.verdict in ("higher", "lower") else "", 9: "bold red"}
        plain = list(cells(comparison, row))
        if narrow:  # break before ± and [, and allow it behind a comma of the name
            plain = [plain[0].replace(",", ", "), *(re.sub(r" (?=[±\[])", "\n", text) for text in plain[1:])]
        texts = [rich.text.Text(text, style=styles.get(i, "")) for i, text in enumerate(plain)]
        table.add_row(*(rich.text.Text("\n").join(texts[i] for i in group if plain[i]) for group in groups))
    console.print(rich.text.Text(f"{comparison.experiment} on {comparison.preset}\n", style="bold"))
    console.print(table)
    console.print(rich.text.Text(f"\n{answer(comparison)}", style="bold"))
    for line in footnotes(comparison):
        console.print(rich.text.Text(line))


def markdown(comparison: Comparison) -> str:
    def line(texts: Iterable[str]) -> str:
        return "| " + " | ".join(re.sub(r"([\\`*<>&|])", r"\\\1", text) for text in texts) + " |"

    table = [line(HEADERS), "|---" + "|---:" * 8 + "|---|", *(line(cells(comparison, row)) for row in comparison.rows)]
    title = f"# {comparison.experiment} on {comparison.preset}"
    notes = [f"- {text}" for text in reading(comparison)]
    return "\n".join([title, "", answer(comparison), "", *table, "", "How to read it:", "", *notes, ""])


def as_json(comparison: Comparison) -> dict[str, object]:
    """The content of report.json: fractions, and None where a number is undefined."""
    head = {field: getattr(comparison, field) for field in ("experiment", "preset", "baseline")}
    return {**head, "rows": [_record(row) for row in comparison.rows]}


def _record(row: Row) -> dict[str, Any]:
    overrides = {k: str(v) if v in (math.inf, -math.inf) else v for k, v in row.overrides.items()}  # no JSON numbers
    record: dict[str, Any] = {"name": row.name, "overrides": overrides, "n": row.n}
    record |= {field: dataclasses.asdict(getattr(row, field)) for field in ("top1", "top5", "delta")}
    record |= {field: getattr(row, field) for field in ("params", "macs", "mib", "images_per_second", "notes")}
    return record | {"seeds": list(row.seeds), "pairs": len(row.differences)}


def as_csv(comparison: Comparison) -> str:
    """report.json's rows, flat: `top1_mean`, `delta_low`, `config.model.bypass`."""
    records = []
    for row in comparison.rows:
        record = _record(row)
        parts = {part: record.pop(part) for part in ("top1", "top5", "delta")}
        record |= {f"{part}_{key}": value for part, values in parts.items() for key, value in values.items()}
        record |= {f"config.{key}": value for key, value in record.pop("overrides").items()}
        records.append(record | {"seeds": " ".join(map(str, row.seeds))})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(itertools.chain(*records))), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def write(comparison: Comparison, workdir: Path) -> None:
    """Writes report.json, report.csv, report.md and report.html to `workdir`, each at once or not at all."""
    from squeezenet_jax.report import page  # draws: matplotlib takes a second to import

    record = json.dumps(as_json(comparison), indent=2, allow_nan=False, default=str)
    write_text(workdir / "report.json", record + "\n")
    write_text(workdir / "report.csv", as_csv(comparison))
    write_text(workdir / "report.md", markdown(comparison))
    write_text(workdir / "report.html", page.page(comparison))
