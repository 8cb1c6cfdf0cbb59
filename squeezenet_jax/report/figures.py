"""The figures of a `Comparison` as inline SVG. No jax.

Figures are drawn with placeholder colours that become CSS variables, so the page's light or dark scheme colours them;
everything is in the one file, and the same comparison gives the same bytes. Up to six rows share one plot; more get a
small panel each, so that no reader has to tell twelve colours apart. What stands for a run or a row is a `Point`, which
says what it is to whoever hovers over it (`page.js`). Read next: `page.py`.
"""

import dataclasses
import html
import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from squeezenet_jax.report.columns import SHOWN
from squeezenet_jax.report.comparison import Comparison, Row, Run
from squeezenet_jax.report.wording import points

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

# Placeholders; `_svg` turns them into var(--ink), var(--mute), var(--page) and var(--s0) to var(--s5).
INK, MUTE, PAGE, SERIES = "#0a0b01", "#0a0b02", "#0a0b03", [f"#0a0c0{i}" for i in range(6)]
MARKERS, DASHES = "os^Dv*", ["-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1))]
WIDTH = 4.7  # inches: text stays readable when a phone shows the figure 360 px wide
LINE = 66  # characters of a figure's width


@dataclasses.dataclass(frozen=True)
class Point:
    """What in a figure stands for a run, or for a row."""

    artist: "Artist"
    row: int  # its place in the comparison
    seed: int | None  # None: it stands for the row
    text: str


def short_names(rows: Sequence[Row]) -> tuple[list[str], str]:
    """Names for a figure and what they stand for: ["none", "simple"], "bypass" if all rows are named `bypass=...`."""
    pairs = [[part.partition("=") for part in row.name.split(",")] for row in rows]
    keys = {tuple(key.strip() for key, _, _ in parts) for parts in pairs}
    if len(keys) > 1 or not all(separator for parts in pairs for _, separator, _ in parts):
        return [row.name for row in rows], "setting"
    return [", ".join(value for _, _, value in parts) for parts in pairs], " and ".join(keys.pop())


def _fitted(name: str, characters: int, lines: int = 2) -> str:
    return textwrap.fill(name, characters, max_lines=lines, placeholder="…")


def _row_text(row: Row) -> str:
    """What the table says of a row."""
    first, *others = SHOWN
    lines = [f"{column.title}: {text}" for column in others if (text := column.text(row))]
    return "\n".join([_spaced(first.text(row)), *lines])


def _spaced(name: str) -> str:
    """A setting's name with places where a line may end."""
    return name.replace(",", ", ")


def _run_text(run: Run, has_top5: bool) -> str:
    lines = [f"{_spaced(run.setting)}, seed {run.seed}"]
    lines += [run.status] if run.status != "done" else []
    if run.result:
        lines.append(f"top-1: {100 * run.result['top1']:.2f} %")
        lines += [f"top-5: {100 * run.result['top5']:.2f} %"] if has_top5 else []
        lines.append(f"loss: {run.result['loss']:.4g}")
        lines += [f"images/s: {run.result['images_per_second']:,.0f}"] if "images_per_second" in run.result else []
    return "\n".join(lines)


def _svg(name: str, height: float, alt: str, draw: Callable[["Figure"], Sequence[Point]]) -> str:
    """Draws a figure `height` inches high and returns it as an <svg> element in the page's colours.

    Each point that `draw` returns is a <g class="point"> with its text as <title>, which a browser shows by itself.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.family": "DejaVu Sans", "font.size": 8.5,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTE, "xtick.color": MUTE, "ytick.color": MUTE,
        "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
        "axes.linewidth": 0.7, "lines.linewidth": 1.6, "lines.markersize": 5, "legend.frameon": False,
        "text.parse_math": False,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        found = draw(figure)
        for number, point in enumerate(found):
            point.artist.set_gid(f"point-{number}")
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    names = {INK: "ink", MUTE: "mute", PAGE: "page"} | {colour: f"s{i}" for i, colour in enumerate(SERIES)}
    text = re.sub("|".join(names), lambda match: f"var(--{names[match[0]]})", text)
    for number, point in enumerate(found):
        seed = "" if point.seed is None else f' data-seed="{point.seed}"'
        group = f'<g class="point" data-row="{point.row}"{seed}><title>{html.escape(point.text)}</title>'
        text = text.replace(f'<g id="point-{number}">', group, 1)
    text = scoped(text, name)
    text = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)  # CSS scales it, by its viewBox
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)


def scoped(svg: str, name: str) -> str:
    """The figure with `name-`, unless it is "", before each of its ids, which are the page's, not the figure's."""
    return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg) if name else svg


def _mean_and_range(runs: Sequence[Run], curve: str, key: str, most: int = 150) -> npt.NDArray[np.float64]:
    """[4, points]: epoch and mean, lowest and highest value, at the steps where every run has a finite value."""
    found = [[p for p in getattr(run, curve) if p.get(key) is not None and math.isfinite(p[key])] for run in runs]
    series = [{p["step"]: p for p in points} for points in found]
    steps = sorted(set(series[0]).intersection(*series)) if series else []
    if not steps:
        return np.zeros((4, 0))
    values = np.array([[one[step][key] for one in series] for step in steps]) * (100 if key == "top1" else 1)
    epochs = np.array([series[0][step]["epoch"] for step in steps])
    table = np.stack([epochs, values.mean(1), values.min(1), values.max(1)], axis=1)
    return np.array([part.mean(0) for part in np.array_split(table, min(len(table), most))]).T


def _draw_row(axes: "Axes", rows: Sequence[Row], place: int, curve: str, key: str, name: str) -> list[Point]:
    """A row's mean over its seeds with their range, and every run that is not in n alone, ending in a cross."""
    row, i = rows[place], place if len(rows) <= len(SERIES) else None
    epochs, mean, low, high = _mean_and_range([run for run in row.runs if run.result], curve, key)
    color = SERIES[i or 0]
    style: dict[str, Any] = (
        {"marker": "o", "markersize": 3} if i is None else {"linestyle": DASHES[i], "marker": MARKERS[i]}
    )
    axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
    # The marker shows a curve of one point.
    (line,) = axes.plot(epochs, mean, color=color, label=name, markevery=[-1], **style)
    found = [Point(line, place, None, _row_text(row))]
    for run in row.runs:
        if not run.result:
            epochs, value, _, _ = _mean_and_range([run], curve, key)
            (line,) = axes.plot(epochs, value, color=color, linewidth=0.7, marker="x", markevery=[-1])
            found.append(Point(line, place, run.seed, _run_text(run, row.top5.mean is not None)))
    return found


def curves(comparison: Comparison, curve: str, key: str, label: str) -> str:
    """Learning curves: all rows in one plot, or a panel each with the other rows behind it in grey."""
    rows, (names, _) = comparison.rows, short_names(comparison.rows)
    many, longest = len(rows) > len(SERIES), max(map(len, names))
    across = 1 if not many else 3 if longest <= LINE // 3 else 2  # panels
    lines = [_mean_and_range([run for run in row.runs if run.result], curve, key, 40)[:2] for row in rows]
    lines += [_mean_and_range([run], curve, key)[:2] for row in rows for run in row.runs if not run.result]
    values = np.concatenate([line[1] for line in lines])
    behind = np.hstack([np.hstack([line, [[np.nan]] * 2]) for line in lines[: len(rows)]])
    if not values.size:
        return ""

    def draw(figure: "Figure") -> list[Point]:
        found = []
        panels = figure.subplots(math.ceil(len(rows) / across) if many else 1, across, sharex=True, sharey=True)
        panels = np.ravel(panels)
        for i in range(len(rows)):
            if many:
                panels[i].plot(*behind, color=MUTE, linewidth=0.4)
                panels[i].set_title(_fitted(names[i], LINE // across), fontsize=8, loc="left", pad=3)
            found += _draw_row(panels[i if many else 0], rows, i, curve, key, _fitted(names[i], LINE - 8, 1))
        for axes in panels[len(rows) :]:
            axes.set_axis_off()
        if not many:
            columns = min(max(LINE // (longest + 8), 1), 3)  # a line and its gap take the place of eight characters
            figure.legend(loc="outside upper left", ncols=columns, borderpad=0, handlelength=2.6)
        if key == "loss" and values.min() > 0 and values.max() > 10 * values.min():
            panels[0].set_yscale("log")
            panels[0].yaxis.set_major_formatter("{x:g}")
        figure.supxlabel("epoch", fontsize=8.5)
        figure.supylabel(label, fontsize=8.5)
        return found

    height = 0.95 * math.ceil(len(rows) / across) + 0.5 if many else 3.2
    return _svg(f"{curve}-{key}", height, f"{label} against epoch, by setting", draw)


def accuracy(comparison: Comparison, field: str, quantity: str) -> str:
    """Top-1 against a field of a row: its mean ± std, its runs as faint dots; rows of one size stand side by side."""
    rows, (names, _) = comparison.rows, short_names(comparison.rows)
    sizes: dict[float, list[int]] = {}
    for i, row in enumerate(rows):
        if row.n and (size := getattr(row, field)) is not None:
            sizes.setdefault(size, []).append(i)
    if not sizes:
        return ""

    def draw(figure: "Figure") -> list[Point]:
        from matplotlib.ticker import EngFormatter, NullFormatter
        from matplotlib.transforms import ScaledTranslation

        axes = figure.subplots()
        axes.margins(0.12, 0.1)
        if max(sizes) > 10 * min(sizes):
            axes.set_xscale("log")
        labels, found = [], []
        for size, members in sizes.items():
            for place, i in enumerate(members):
                color, marker = (SERIES[0], "o") if len(rows) > len(SERIES) else (SERIES[i], MARKERS[i])
                shift = 9 * (place - (len(members) - 1) / 2)
                moved = axes.transData + ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
                mean, std = 100 * (rows[i].top1.mean or 0), 100 * (rows[i].top1.std or 0)
                bars = axes.errorbar(size, mean, std or None, fmt=marker, color=color, elinewidth=1)
                has_top5 = rows[i].top5.mean is not None
                runs = [(run, 100 * run.result["top1"]) for run in rows[i].runs if run.result]
                style: dict[str, Any] = {"color": color, "alpha": 0.4, "markersize": 4}
                dots = [
                    Point(axes.plot(size, top1, ".", **style)[0], i, run.seed, _run_text(run, has_top5))
                    for run, top1 in runs
                ]
                for artist in (*bars.get_children(), *(dot.artist for dot in dots)):
                    artist.set_transform(moved)  # after the axes have seen where the data is
                found += [Point(bars.get_children()[0], i, None, _row_text(rows[i])), *dots]
                label = axes.annotate(
                    _fitted(names[i], LINE // 2), (size, mean), (0, 0), textcoords="offset points", fontsize=8
                )
                label.set(va="bottom", in_layout=False)
                labels.append((label, shift))
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=quantity, ylabel="top-1 %", ylim=(axes.get_ylim()[0], min(axes.get_ylim()[1], 100.5)))
        _place(figure, labels)
        return found

    return _svg(f"accuracy-{field}", 3.2, f"top-1 against {quantity}, by setting", draw)


def _place(figure: "Figure", labels: Sequence[tuple["Annotation", float]]) -> None:
    """Puts each label on the side of its point, moved sideways by so much, where it covers least."""
    from matplotlib.transforms import Bbox

    figure.canvas.draw()
    frame, point = figure.axes[0].get_window_extent(), figure.dpi / 72
    origins = [figure.axes[0].transData.transform(label.xy) for label, _ in labels]
    centres = [(x + shift * point, y) for (x, y), (_, shift) in zip(origins, labels, strict=True)]
    taken = [Bbox.from_bounds(x - 4 * point, y - 4 * point, 8 * point, 8 * point) for x, y in centres]

    def cost(box: "Bbox") -> float:
        hidden = [Bbox.intersection(box, other) for other in taken]
        inside = Bbox.intersection(box, frame)
        outside = box.width * box.height - (inside.width * inside.height if inside else 0)
        return outside + sum(both.width * both.height for both in hidden if both)

    sides = [
        (u, v, far)
        for far in (6, 13, 22)
        for u, v in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
    ]
    for (label, _), origin, (x, y) in zip(labels, origins, centres, strict=True):
        text = label.get_window_extent()
        boxes = [
            Bbox.from_bounds(
                x + u * far * point + (u - 1) / 2 * text.width,
                y + v * far * point + (v - 1) / 2 * text.height,
                text.width,
                text.height,
            )
            for u, v, far in sides
        ]
        best = min(boxes, key=cost)
        taken.append(best)
        label.set_position(tuple((best.min - origin) / point))


def deltas(comparison: Comparison) -> str:
    """Every row's difference to the baseline with its interval, hollow unless 0 is outside; its pairs as faint dots."""
    names = short_names(comparison.rows)[0]
    rows = [(place, row) for place, row in enumerate(comparison.rows) if row.delta.mean is not None]
    if not rows:
        return ""

    def draw(figure: "Figure") -> list[Point]:
        found = []
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=0.8)
        for y, (place, row) in enumerate(rows):
            for seed, difference in zip(row.pairs, row.differences, strict=True) if len(row.pairs) > 1 else ():
                (dot,) = axes.plot(100 * difference, y + 0.25, ".", color=SERIES[0], alpha=0.5)
                text = f"{_spaced(row.name)}, seed {seed}\n{points(difference)} points to {row.baseline}"
                found.append(Point(dot, place, seed, text))
            if row.delta.low is not None and row.delta.high is not None:
                axes.plot([100 * row.delta.low, 100 * row.delta.high], [y, y], color=SERIES[0])
            face = SERIES[0] if row.delta.verdict in ("higher", "lower") else PAGE
            (mean,) = axes.plot(
                100 * (row.delta.mean or 0), y, "o", markersize=6, color=SERIES[0], markerfacecolor=face
            )
            found.append(Point(mean, place, None, _row_text(row)))
        axes.set_yticks(range(len(rows)), [_fitted(names[place], LINE // 2) for place, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.5)
        axes.tick_params("y", length=0)
        axes.spines["left"].set_visible(False)
        of = comparison.baseline if len(comparison.baseline) < LINE // 2 else "the baseline"
        axes.set_xlabel(f"top-1 minus that of {of}, points")
        return found

    return _svg("deltas", 0.7 + 0.3 * len(rows), f"difference in top-1 to {comparison.baseline}, by setting", draw)
