"""Draws docs/metaparameters.png from the rebuilt reports of three archives (docs/results/README.md).

python docs/results/metaparameters.py width-fashion_mnist squeeze_ratio-fashion_mnist pct3x3-fashion_mnist
"""

import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

AXES = {"model.width": "width", "model.squeeze_ratio": "squeeze ratio", "model.pct3x3": "share of 3x3 filters"}
BYPASSES = {"none": ("#4c72b0", "o"), "simple": ("#dd8452", "s")}


def draw(workdirs: list[Path], out: Path) -> None:
    """Top-1 against what each sweep varies: a line for each bypass, bars of a standard deviation."""
    figure = Figure(figsize=(11, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, workdir in zip(figure.subplots(1, len(workdirs)), workdirs, strict=True):
        rows = json.loads((workdir / "report.json").read_text())["rows"]
        (field,) = {name for row in rows for name in row["overrides"]} - {"model.bypass"}
        for bypass, (color, marker) in BYPASSES.items():
            line = sorted(
                (row["overrides"][field], 100 * row["top1"]["mean"], 100 * row["top1"]["std"])
                for row in rows
                if row["overrides"]["model.bypass"] == bypass
            )
            values, means, deviations = zip(*line, strict=True)
            axes.errorbar(values, means, deviations, color=color, marker=marker, capsize=3, label=bypass)
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.set_xlabel(AXES[field])
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("top-1, %")
    figure.axes[0].legend(title="bypass", loc="lower right")
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    draw([Path(name) for name in sys.argv[1:]], Path(__file__).parents[1] / "metaparameters.png")
