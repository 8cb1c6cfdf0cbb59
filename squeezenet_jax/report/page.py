"""The comparison as one self-contained HTML page: answer, table, figures, how to read it, how it was run."""

import base64
import collections
import hashlib
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from squeezenet_jax.report import across, figures
from squeezenet_jax.report.columns import SHOWN, Column, further_tables, meanings, reading
from squeezenet_jax.report.comparison import Comparison, Row
from squeezenet_jax.report.conditions import conditions, differences, environment, summary
from squeezenet_jax.report.wording import answer

CSS, SCRIPT = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
# The browser holds the page to it: nothing is fetched, and no other script runs, whatever a setting is named.
HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{HASH}'; base-uri 'none'"
# By the field of a `Row`: what top-1 can be seen against, as a choice and as the title of an axis.
AXES = {
    "params": ("parameters", "parameters"),
    "macs": ("MACs", "multiply-adds per image"),
    "bytes": ("bytes", "bytes of the weights"),
    "images_per_second": ("images/s", "images per second in training"),
}
CHECKED = ' checked="checked"'


def _table(comparison: Comparison) -> str:
    """Columns that have something to say; the first one is the rows' heading."""
    shown = [column for column in SHOWN if any(column.text(row) for row in comparison.rows)]
    caption = "Accuracy, difference to the baseline, size and speed of each setting."
    if how := summary(comparison):
        caption += f" {html.escape(how[0].upper() + how[1:])}."
    return _columns(comparison, shown, comparison.rows, caption)


def _details(comparison: Comparison) -> str:
    """The tables behind the first one, and how to read them."""
    texts = []
    for more in further_tables(comparison):
        table = _columns(comparison, more.columns, more.rows, more.caption)
        notes = "".join(f"<li>{html.escape(text)}</li>" for text in meanings(more.columns, comparison))
        texts.append(f"<h2>{more.title}</h2>{table}<ul>{notes}</ul>")
    return "".join(texts)


def _columns(comparison: Comparison, columns: Sequence[Column], rows: Sequence[Row], caption: str) -> str:
    """A table whose first column is the rows' heading; a row has the number that it has in the comparison."""
    first, *others = columns
    lines = []
    places = {row.name: place for place, row in enumerate(comparison.rows)}
    for row in rows:
        data = "".join(
            _data(column.text(row), column.title, column.kind(row), _sort_value(column.value(row))) for column in others
        )
        lines.append(f'<tr role="row" data-row="{places[row.name]}">{_row_heading(first.text(row))}{data}</tr>')
    return _laid_out([column.title for column in columns], lines, caption)


def _laid_out(titles: Sequence[str], lines: Sequence[str], caption: str) -> str:
    """A table; its roles are written out, because a narrow page lays it out as blocks."""
    head = "".join(
        f'<th role="columnheader" scope="col" class="{html.escape(title)}">{html.escape(title)}</th>'
        for title in titles
    )
    return (
        f'<div class="wider"><table role="table"><caption>{caption}</caption>'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(lines)}</tbody></table></div>'
    )


def _row_heading(text: str) -> str:
    return f'<th role="rowheader" scope="row">{html.escape(text).replace(",", ",<wbr/>")}</th>'


def _data(text: str, title: str, kind: str = "", value: str = "") -> str:
    return f'<td role="cell" class="{kind}" data-label="{html.escape(title)}"{value}>{html.escape(text)}</td>'


def _sort_value(value: object) -> str:
    """The attribute with the number that a cell is sorted by; none for words, an empty one for what is undefined.

    Of a mapping it is the first: an estimate's mean.
    """
    if isinstance(value, Mapping):
        value = next(iter(value.values()), None)
    if value is None or isinstance(value, int | float):
        return f' data-value="{"" if value is None else float(value)}"'
    return ""


def _choice(comparison: Comparison, prefix: str) -> str:
    """Top-1 against each of `AXES`, of which one is chosen to be seen; all are, where a browser cannot choose."""
    found = {field: figures.accuracy(comparison, field, quantity) for field, (_, quantity) in AXES.items()}
    drawn = {field: svg for field, svg in found.items() if svg}
    buttons = "".join(
        f'<label><input type="radio" name="{prefix}axis" value="{field}"{CHECKED * (place == 0)}/> {AXES[field][0]}'
        "</label>"
        for place, field in enumerate(drawn)
    )
    drawings = "".join(f'<div class="by {field}">{svg}</div>' for field, svg in drawn.items())
    return f"<fieldset><legend>Top-1 against</legend>{buttons}</fieldset>{drawings}" if drawn else ""


def _facts(comparison: Comparison) -> str:
    """How it was run, as a definition list."""
    runs = [run for row in comparison.rows for run in row.runs]
    statuses = collections.Counter(run.status for run in runs)
    ends = [run.eval_curve[-1] for run in runs if run.result and run.eval_curve]
    lengths = sorted({f"{end['epoch']:g} epochs ({end['step']:,.0f} steps)" for end in ends})
    counts = sorted({f"{run.result['count']:,.0f}" for run in runs if run.result and "count" in run.result})
    changes = [f"{row.name}: {' '.join(f'{k}={v}' for k, v in row.overrides.items())}" for row in comparison.rows]
    facts = {
        "experiment": [comparison.experiment],
        "preset": [comparison.preset],
        "baseline": [comparison.baseline],
        "seeds": [", ".join(map(str, sorted({run.seed for run in runs})))],
        "runs": [f"{len(runs)}: " + ", ".join(f"{count} {status}" for status, count in statuses.items())],
        "length of a run": lengths,
        "images evaluated": counts,
        "what a setting sets": changes,
        **conditions(comparison),
        **environment(comparison),
    }
    entries = {name: "<br/>".join(map(html.escape, texts)) for name, texts in facts.items() if texts}
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{text}</dd>' for name, text in entries.items())}</dl>"


def page(*comparisons: Comparison) -> str:
    """report.html: the question and its answer, the table, the figures, how to read them and how it was run.

    Of several comparisons, each a preset: first the settings across presets, then a section like that for each.
    """
    title = html.escape(across.title(comparisons))
    if len(comparisons) == 1:
        top, body = _parts(comparisons[0])
        content = f"<header><h1>{title}</h1>{top}</header>\n<main>{body}</main>"
    else:
        sections = []
        for number, comparison in enumerate(comparisons):
            top, body = _parts(comparison, prefix=f"p{number}")
            sections.append(f"<section><h2>{html.escape(comparison.preset)}</h2>{top}\n{body}</section>")
        content = f"<header><h1>{title}</h1></header>\n<main>{_across(comparisons)}\n{''.join(sections)}</main>"
    return f"""<!DOCTYPE html>
<html lang="en" xmlns="http://www.w3.org/1999/xhtml"><head><meta charset="utf-8"/>
<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/><title>{title}</title><style>{CSS}</style></head>
<body>{content}<script>{SCRIPT}</script></body></html>
"""


def _across(comparisons: Sequence[Comparison]) -> str:
    """What each setting gives on each preset, a table."""
    titles, rows = across.table(comparisons)
    lines = []
    for name, cells in rows.items():
        data = "".join(
            _data(text, title, f"wide {kind}", _sort_value(value))
            for title, (text, value, kind) in zip(titles[1:], cells, strict=True)
        )
        lines.append(f'<tr role="row">{_row_heading(name)}{data}</tr>')
    return _laid_out(titles, lines, "Each setting on each preset; a difference is to the baseline of its own preset.")


def _parts(comparison: Comparison, prefix: str = "") -> tuple[str, str]:
    """(question, answer and warning; all that comes behind them) of one comparison, the ids behind a prefix."""
    _, keys = figures.short_names(comparison.rows)
    axis = f"Labels give {keys}. " if keys != "setting" else ""
    band = "Line: mean over seeds; band: lowest to highest seed. "
    if any(not run.result and (run.train_curve or run.eval_curve) for row in comparison.rows for run in row.runs):
        band += "A thin line that ends in a cross is a run that is not in n. "
    sizes = f"Marker: mean ± standard deviation; faint dots: runs; settings of equal size stand side by side. {axis}"
    intervals = (
        "Line: 95 % interval; faint dots: the pairs of runs. A filled marker is distinguishable from the baseline, a "
        "hollow one is not. "
        if any(row.delta.low is not None for row in comparison.rows)
        else "A single pair of runs each, so no interval can be given. "
    )
    drawn = [
        ("Difference to the baseline", figures.deltas(comparison), intervals + axis),
        ("Top-1 while training", figures.curves(comparison, "eval_curve", "top1", "top-1 %"), band + axis),
        ("Training loss", figures.curves(comparison, "train_curve", "loss", "cross-entropy"), band + axis),
        ("Top-1 against its cost", _choice(comparison, prefix), sizes),
    ]
    drawings = "".join(
        f"<figure>{figures.scoped(svg, prefix)}<figcaption><b>{title}.</b> {html.escape(text)}</figcaption></figure>"
        for title, svg, text in drawn
        if svg
    )
    unsound = "; ".join(f"{row.name}: {row.notes}" for row in comparison.rows if row.notes)
    cautions = "<br/>".join(map(html.escape, ([f"{unsound}."] if unsound else []) + differences(comparison)))
    warning = f'<p class="warning" role="note"><b>Read with care.</b> {cautions}</p>' if cautions else ""
    subject = f"combination of {keys}" if " and " in keys else keys
    question = html.escape(f"Which {subject} does best, and which differ from {comparison.baseline}?")
    notes = "".join(f"<li>{html.escape(text)}</li>" for text in reading(comparison))
    top = f"""<p class="question">{question}</p><p class="answer">{html.escape(answer(comparison))}</p>
{warning}"""
    return (
        top,
        f"""{_table(comparison)}
<h2>Figures</h2><div class="figures">{drawings}</div>
<h2>How to read it</h2><ul>{notes}</ul>
{_details(comparison)}
<h2>How it was run</h2>{_facts(comparison)}""",
    )
