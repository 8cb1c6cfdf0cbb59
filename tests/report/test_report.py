"""The comparison against independent oracles, and its four files read back."""

import csv
import dataclasses
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.console
from scipy import stats

from squeezenet_jax import report
from squeezenet_jax.report import Run, compare, page, print_table, write
from squeezenet_jax.system.errors import UserError

BASE, SIMPLE = "bypass=none", "bypass=simple"
TOP1 = {BASE: [0.961, 0.958, 0.967, 0.95], SIMPLE: [0.972, 0.964, 0.975, 0.966]}


def a_run(setting: str, seed: int, top1: float | None, status: str = "done", top5: float = 0.99) -> Run:
    """A run of 4 epochs; `top1` None: one without a final evaluation."""
    curve = [{"step": 10 * e, "epoch": e, "loss": 2 / e, "top1": 0.2 * e, "top5": 0.25 * e} for e in range(1, 5)]
    final = {"loss": 0.1, "top1": top1 or 0.0, "top5": top5, "count": 1000, "images_per_second": 100.0 + seed}
    overrides = {"model.bypass": setting.partition("=")[2]}
    return Run(setting, overrides, seed, status, 1_248_424, 860_000_000, None if top1 is None else final, curve, curve)


def runs_of(**statuses: str) -> list[Run]:
    """Two rows of four seeds; `simple1="diverged"` gives that run this status and takes its evaluation away."""
    found = []
    for setting, values in TOP1.items():
        for seed, top1 in enumerate(values):
            status = statuses.get(f"{setting.partition('=')[2]}{seed}", "done")
            found.append(a_run(setting, seed, top1 if status in ("done", "stalled") else None, status))
    return found


def row_of(runs: Sequence[Run], name: str = SIMPLE) -> report.Row:
    return next(row for row in compare("bypass", "digits", BASE, runs).rows if row.name == name)


def test_mean_std_and_paired_interval_agree_with_scipy() -> None:
    row = row_of(runs_of())
    interval = stats.ttest_rel(TOP1[SIMPLE], TOP1[BASE]).confidence_interval(0.95)
    assert row.n == 4 and row.notes == ""
    assert (row.top1.mean, row.top1.std) == pytest.approx((np.mean(TOP1[SIMPLE]), np.std(TOP1[SIMPLE], ddof=1)))
    assert (row.delta.low, row.delta.high) == pytest.approx((interval.low, interval.high))
    assert row.delta.mean == pytest.approx(np.mean(TOP1[SIMPLE]) - np.mean(TOP1[BASE]))
    assert row.images_per_second == pytest.approx(101.5)
    assert row.mib == pytest.approx(4.7624, abs=1e-4)  # 1,248,424 * 4 bytes: the paper's "4.8 MB" before compression


def test_interval_covers_the_truth_in_95_of_100_experiments() -> None:
    draws = np.random.default_rng(0).normal(0.3, 1.0, size=(2000, 3))
    deltas = [report.paired_delta(list(draw)) for draw in draws]
    covered = np.mean(
        [low <= 0.3 <= high for d in deltas if (low := d.low) is not None and (high := d.high) is not None]
    )
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 2000))


def test_the_order_of_the_runs_does_not_matter_to_a_row() -> None:
    forward, backward = row_of(runs_of()).delta, row_of(runs_of()[::-1]).delta
    assert (forward.low, forward.high) == pytest.approx((backward.low, backward.high))


def test_baseline_has_no_delta() -> None:
    assert row_of(runs_of(), BASE).delta == report.Delta(None, None, None)


def test_one_seed_has_neither_std_nor_interval() -> None:
    row = row_of([run for run in runs_of() if run.seed == 0])
    assert (row.n, row.top1.std, row.delta.low, row.delta.high) == (1, None, None, None)
    assert row.delta.mean == pytest.approx(0.011)
    assert row.delta.verdict == "no interval"


@pytest.mark.parametrize("status", ["diverged", "failed", "preempted", "running", "missing"])
def test_a_run_without_a_result_leaves_n_and_is_named(status: str) -> None:
    row = row_of(runs_of(simple1=status))
    kept = [0, 2, 3]
    interval = stats.ttest_rel([TOP1[SIMPLE][s] for s in kept], [TOP1[BASE][s] for s in kept]).confidence_interval(0.95)
    assert row.seeds == (0, 2, 3)
    assert row.notes == f"1 {status}"
    assert row.top1.mean == pytest.approx(np.mean([TOP1[SIMPLE][s] for s in kept]))
    assert (row.delta.low, row.delta.high) == pytest.approx((interval.low, interval.high))


def test_pairs_are_the_seeds_that_both_rows_have() -> None:
    row = row_of(runs_of(none0="missing", simple3="failed"))
    assert row.n == 3
    assert row.differences == pytest.approx([TOP1[SIMPLE][s] - TOP1[BASE][s] for s in (1, 2)])
    assert row.notes == "1 failed, 2 paired"


def test_a_stalled_run_counts_and_is_named() -> None:
    row = row_of(runs_of(simple2="stalled"))
    assert (row.n, row.notes) == (4, "1 stalled")


def test_done_without_an_evaluation_is_named() -> None:
    runs = [*runs_of()[:-1], a_run(SIMPLE, 3, None)]
    assert (row_of(runs).n, row_of(runs).notes) == (3, "1 without evaluation")


def test_a_baseline_without_results_leaves_every_delta_undefined() -> None:
    row = row_of(runs_of(**{f"none{seed}": "failed" for seed in range(4)}))
    assert row.delta == report.Delta(None, None, None)
    assert row.notes == "0 paired"


def test_equal_differences_are_not_taken_for_certainty() -> None:
    runs = [
        a_run(name, seed, 0.9 + 0.01 * seed + bonus)
        for name, bonus in ((BASE, 0.0), (SIMPLE, 0.02))
        for seed in range(3)
    ]
    assert row_of(runs).delta.verdict == "no interval"


def test_verdicts_follow_the_interval() -> None:
    better = row_of(runs_of()).delta
    assert better.low is not None and better.low > 0 and better.verdict == "higher"
    assert report.Delta(-0.2, -0.3, -0.1).verdict == "lower"
    assert report.Delta(0.1, -0.1, 0.3).verdict == "unclear"


def test_wrong_input_is_refused() -> None:
    with pytest.raises(UserError, match='did you mean "bypass=none"'):
        compare("bypass", "digits", "bypass=non", runs_of())
    with pytest.raises(ValueError, match="same seed"):
        compare("bypass", "digits", BASE, [*runs_of(), a_run(SIMPLE, 0, 0.9)])


def test_json_is_strict_and_has_the_schema(tmp_path: Path) -> None:
    write(compare("bypass", "digits", BASE, runs_of(simple1="diverged")), tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert list(content) == ["experiment", "preset", "baseline", "rows"]
    assert [row["name"] for row in content["rows"]] == [BASE, SIMPLE]
    for row in content["rows"]:
        assert {"name", "overrides", "n", "top1", "top5", "delta", "params", "macs"} <= set(row)
        assert set(row["top1"]) == set(row["top5"]) == {"mean", "std"}
        assert set(row["delta"]) == {"mean", "low", "high"}
    assert content["rows"][0]["delta"] == {"mean": None, "low": None, "high": None}
    assert content["rows"][1]["overrides"] == {"model.bypass": "simple"}
    assert 0 < content["rows"][1]["delta"]["mean"] < 0.02  # a fraction
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"report.{e}" for e in ("csv", "html", "json", "md")]


def test_csv_and_markdown_read_back_to_the_same_numbers(tmp_path: Path) -> None:
    write(compare("bypass", "digits", BASE, runs_of(simple1="failed")), tmp_path)
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    lines = list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())))
    table = [line.split(" | ") for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| b")]
    for row, line, cells in zip(rows, lines, table, strict=True):
        assert line["name"] == cells[0].removeprefix("| ") == row["name"]
        assert int(line["n"]) == int(cells[1]) == row["n"]
        assert line["config.model.bypass"] == row["overrides"]["model.bypass"]
        for part, keys in (("top1", ("mean", "std")), ("top5", ("mean", "std")), ("delta", ("mean", "low", "high"))):
            values = [row[part][key] for key in keys]
            assert [float(text) if (text := line[f"{part}_{key}"]) else None for key in keys] == values
            shown = cells[{"top1": 2, "top5": 3, "delta": 4}[part]].replace("−", "-")
            numbers = [float(number) / 100 for number in re.findall(r"[-+]?\d+\.\d+", shown)]
            assert numbers == pytest.approx([value for value in values if value is not None], abs=0.5001e-4)


def parsed(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


NASTY = 'a<b>&"c"|$x$'


def test_page_is_well_formed_self_contained_and_escaped(tmp_path: Path) -> None:
    renamed = [a_run(NASTY if run.setting == SIMPLE else BASE, run.seed, 0.9 + 0.01 * run.seed) for run in runs_of()]
    comparison = compare("a<b", "x&y", BASE, renamed)
    write(comparison, tmp_path)
    written = (tmp_path / "report.html").read_text()
    root = parsed(written)
    tag = "{http://www.w3.org/1999/xhtml}"
    assert not re.findall(r"https?://(?!www\.w3\.org/(?:1999|2000)/)", written)
    assert not re.findall(r"<(?:script|link|img|iframe)|@import|url\((?!#)", written)
    headers = [element.text for element in root.iter(f"{tag}th") if element.get("scope") == "row"]
    assert headers == [BASE, NASTY]
    drawings = list(root.iter("{http://www.w3.org/2000/svg}svg"))
    assert len(drawings) == 5 and all(drawing.get("aria-label") for drawing in drawings)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert "a\\<b\\>\\&" in (tmp_path / "report.md").read_text()


def test_same_comparison_gives_the_same_page() -> None:
    assert page.page(compare("bypass", "digits", BASE, runs_of())) == page.page(
        compare("bypass", "digits", BASE, runs_of())
    )


def test_no_placeholder_colour_is_left_on_the_page() -> None:
    assert not re.findall("#0a0[bc]", page.page(compare("bypass", "digits", BASE, runs_of(simple0="diverged"))))


@pytest.mark.parametrize("top1", [None, 0.0, 0.9])
def test_any_state_of_a_sweep_can_be_reported(top1: float | None, tmp_path: Path) -> None:
    """Nothing finished, nothing learned, one seed of many rows, empty and non-finite curves."""
    runs = [a_run(f"width={k}", 0, top1, "diverged" if top1 is None else "done") for k in range(9)]
    bad = {"step": 50, "epoch": 5, "loss": math.nan, "top1": math.inf, "top5": 0.0}
    runs += [
        Run("width=9", {"optimizer.clip": math.inf}, 0, "missing", 10**7, 10**9, None),
        Run("width=10", {}, 0, "failed", 1, 1, None, [bad], [bad]),
    ]
    comparison = compare("width", "digits", "width=0", runs)
    write(comparison, tmp_path)
    parsed((tmp_path / "report.html").read_text())
    assert "1 missing" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("width", [80, 120])
def test_console_shows_every_number_and_every_warning(width: int) -> None:
    console = rich.console.Console(width=width, file=io.StringIO(), record=True)
    print_table(compare("bypass", "digits", BASE, runs_of(simple1="diverged")), console)
    text = console.export_text()
    for expected in (BASE, SIMPLE, "97.10", "± 0.46", "1 diverged", "1,248,424", "4.76", "860.0 M", "baseline"):
        assert expected in text
    assert "…" not in text and max(map(len, text.splitlines())) <= width


def test_top5_is_the_mean_of_the_runs_top5() -> None:
    top5 = [0.981, 0.993, 0.99]
    row = row_of([a_run(BASE, 0, 0.9), *(a_run(SIMPLE, seed, 0.9, top5=value) for seed, value in enumerate(top5))])
    assert (row.top5.mean, row.top5.std) == pytest.approx((np.mean(top5), np.std(top5, ddof=1)))


def test_the_other_rows_are_all_but_the_baseline() -> None:
    comparison = compare("bypass", "digits", BASE, [*runs_of(), a_run("bypass=complex", 0, 0.9)])
    assert [row.name for row in comparison.others] == [SIMPLE, "bypass=complex"]


@pytest.mark.parametrize("change", [{"params": 1}, {"macs": 1}, {"overrides": {"model.bypass": "complex"}}])
def test_runs_that_differ_in_more_than_their_seed_are_no_row(change: dict[str, Any]) -> None:
    odd = dataclasses.replace(a_run(SIMPLE, 4, 0.9), **change)
    with pytest.raises(ValueError, match="its runs differ in more than their seed"):
        compare("bypass", "digits", BASE, [*runs_of(), odd])
