"""The comparison as one self-contained HTML page: answer, table, figures, how to read it, how it was run."""

import collections
import html

from squeezenet_jax.report import figures
from squeezenet_jax.report.columns import SHOWN, Column, reading
from squeezenet_jax.report.comparison import Comparison, Row
from squeezenet_jax.report.conditions import conditions, differences, environment, summary
from squeezenet_jax.report.wording import answer

# Light and dark variants of Okabe and Ito's colours (jfly.uni-koeln.de/color), which every reader can tell apart.
CSS = """
:root{color-scheme:light dark;--page:#fdfdfc;--ink:#1b1d1f;--mute:#5d6368;--faint:#d9dcdf;--warn:#a8330f;
--warn-page:#fdf1ec;--s0:#0072b2;--s1:#c9540a;--s2:#00805c;--s3:#a8538a;--s4:#2a93cf;--s5:#a87900}
@media (prefers-color-scheme:dark){:root{--page:#14171a;--ink:#e9ebec;--mute:#a3abb2;--faint:#363c42;--warn:#ff9d73;
--warn-page:#2c1d17;--s0:#5ab4ec;--s1:#f58a45;--s2:#35c79c;--s3:#e39ac8;--s4:#9bd3f5;--s5:#e6bd4e}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:74rem;padding:2.5rem 1.5rem 4rem;background:var(--page);color:var(--ink);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1rem;font-weight:600;color:var(--mute);margin:0}h2{font-size:1.15rem;margin:2.6rem 0 .6rem}
.question{margin:.9rem 0 .2rem;font-size:1.15rem}.answer{margin:0;font-size:1.45rem;line-height:1.35;font-weight:600;
max-width:50rem;text-wrap:pretty}
.warning{margin:1.2rem 0 0;padding:.7rem 1rem;border-left:4px solid var(--warn);
max-width:50rem;background:var(--warn-page)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.92rem;margin-top:1.8rem;
border-top:2px solid var(--ink);border-bottom:2px solid var(--ink)}
caption{caption-side:bottom;text-align:left;color:var(--mute);padding-top:.5rem}
th,td{padding:.42rem .6rem;text-align:right;white-space:nowrap}thead th{border-bottom:1px solid var(--ink)}
tbody tr+tr>*{border-top:1px solid var(--faint)}th:first-child,th.notes,td.notes{text-align:left}
tbody th,th:first-child{padding-left:0}tbody th,td.notes{white-space:normal}
.baseline,.unclear{color:var(--mute)}.higher,.lower{font-weight:700}td.notes{color:var(--warn);font-weight:600;min-width:8.5rem}
.figures{columns:2 22rem;column-gap:2.4rem}figure{margin:0 0 1.8rem;break-inside:avoid}
figure svg{display:block;width:100%;height:auto}figure svg text{font-family:inherit!important}
figcaption{font-size:.88rem;color:var(--mute);margin-top:.3rem}figcaption b{color:var(--ink)}
ul{padding-left:1.2rem;max-width:50rem}li{margin:.3rem 0}code{font-size:.9em;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.2rem;margin:0}dt{color:var(--mute)}dd{margin:0}
@media (max-width:56rem){body{padding:1.2rem 1rem 3rem}.answer{font-size:1.2rem}thead{position:absolute;left:-9999px}
table,tbody,tr,td,tbody th{display:block}table caption{display:block}tbody tr{display:grid;padding:.6rem 0;
grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.1rem 1rem}tbody tr+tr{border-top:1px solid var(--faint)}
tbody tr+tr>*{border:0}tbody tr>*{padding:0;text-align:left}tbody th,.wide{grid-column:1/-1}td:empty{display:none}
td::before{content:attr(data-label) " ";color:var(--mute);font-weight:400}}
@media print{body{max-width:none}tr{break-inside:avoid}}
"""


def _table(comparison: Comparison) -> str:
    """Columns that have something to say; the first one is the rows' heading."""
    first, *others = [column for column in SHOWN if any(column.text(row) for row in comparison.rows)]
    head = "".join(
        f'<th role="columnheader" scope="col" class="{column.title}">{column.title}</th>' for column in (first, *others)
    )
    lines = []
    for row in comparison.rows:
        data = "".join(_cell(column, row) for column in others)
        heading = f'<th role="rowheader" scope="row">{html.escape(first.text(row))}</th>'
        lines.append(f'<tr role="row">{heading}{data}</tr>')
    caption = "Accuracy, difference to the baseline, size and speed of each setting."
    if how := summary(comparison):
        caption += f" {html.escape(how[0].upper() + how[1:])}."
    return (
        f'<table role="table"><caption>{caption}</caption>'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(lines)}</tbody></table>'
    )


def _cell(column: Column, row: Row) -> str:
    text = html.escape(column.text(row))
    return f'<td role="cell" class="{column.kind(row)}" data-label="{column.title}">{text}</td>'


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


def page(comparison: Comparison) -> str:
    """report.html: the question and its answer, the table, the figures, how to read them and how it was run."""
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
        ("Top-1 against parameters", figures.accuracy(comparison, "params", "parameters"), sizes),
        (
            "Top-1 against bytes",
            figures.accuracy(comparison, "bytes", "bytes") if comparison.is_compressed else "",
            sizes,
        ),
        ("Top-1 against MACs", figures.accuracy(comparison, "macs", "multiply-adds per image"), sizes),
    ]
    drawings = "".join(
        f"<figure>{svg}<figcaption><b>{title}.</b> {html.escape(text)}</figcaption></figure>"
        for title, svg, text in drawn
        if svg
    )
    unsound = "; ".join(f"{row.name}: {row.notes}" for row in comparison.rows if row.notes)
    cautions = "<br/>".join(map(html.escape, ([f"{unsound}."] if unsound else []) + differences(comparison)))
    warning = f'<p class="warning" role="note"><b>Read with care.</b> {cautions}</p>' if cautions else ""
    title = html.escape(f"{comparison.experiment} on {comparison.preset}")
    subject = f"combination of {keys}" if " and " in keys else keys
    question = html.escape(f"Which {subject} does best, and which differ from {comparison.baseline}?")
    notes = "".join(f"<li>{html.escape(text)}</li>" for text in reading(comparison))
    return f"""<!DOCTYPE html>
<html lang="en" xmlns="http://www.w3.org/1999/xhtml"><head><meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/><title>{title}</title><style>{CSS}</style></head>
<body><header><h1>{title}</h1><p class="question">{question}</p><p class="answer">{html.escape(answer(comparison))}</p>
{warning}</header>
<main>{_table(comparison)}
<h2>Figures</h2><div class="figures">{drawings}</div>
<h2>How to read it</h2><ul>{notes}</ul>
<h2>How it was run</h2>{_facts(comparison)}</main></body></html>
"""
