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
from fixed_runs import BASE, SIMPLE, TOP1, a_run, every_text, rows_of_every_kind, runs_of
from scipy import stats

from squeezenet_jax import report
from squeezenet_jax.report import Run, columns, compare, conditions, files, page, print_table, wording, write
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.system.randomness import Purpose


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


@pytest.mark.parametrize("status", ["diverged", "failed", "hung", "killed", "preempted", "running", "missing", "new"])
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


@pytest.mark.parametrize(
    ("sizes", "mib", "notes"),
    [
        ([2**20] * 3, 1.0, ""),
        ([2**20, None, None], 1.0, "2 without network.sqz"),
        ([None] * 3, 4.7624, "3 without network.sqz: MiB as if not compressed"),
    ],
)
def test_a_compressed_row_whose_files_are_missing_says_so(sizes: list[int | None], mib: float, notes: str) -> None:
    runs = [a_run(SIMPLE, seed, 0.9) for seed in range(3)]
    shared = [
        dataclasses.replace(
            run,
            settings={"compress.share": "kmeans"},
            final={**(run.final or {}), **({"bytes": size} if size else {})},
        )
        for run, size in zip(runs, sizes, strict=True)
    ]
    row = row_of([*shared, a_run(BASE, 0, 0.9), a_run(BASE, 1, 0.9), a_run(BASE, 2, 0.9)])
    assert (row.mib, row.notes) == (pytest.approx(mib, abs=1e-4), notes)


def test_rows_that_share_the_highest_mean_have_their_own_n() -> None:
    runs = [a_run(BASE, seed, 0.9) for seed in range(3)] + [a_run(SIMPLE, seed, 0.9) for seed in range(2)]
    text = wording.answer(compare("bypass", "digits", BASE, runs))
    assert text.startswith(f"{BASE} (n = 3), {SIMPLE} (n = 2) share the highest mean top-1, 90.00 %")


@pytest.mark.parametrize(("classes", "shown"), [(2, False), (5, False), (6, True), (10, True)])
def test_top5_of_five_classes_or_fewer_is_a_dash_everywhere(classes: int, shown: bool, tmp_path: Path) -> None:
    runs = [dataclasses.replace(run, settings={"data.num_classes": classes}) for run in runs_of()]
    texts = every_text(compare("bypass", "digits", BASE, runs), tmp_path)
    assert [("99.00 ± 0.00" in texts[name]) for name in ("console", "md", "html")] == [shown] * 3
    rows = json.loads(texts["json"])["rows"]
    assert [row["top5"]["mean"] for row in rows] == [0.99 if shown else None] * 2
    assert [line["top5_mean"] for line in csv.DictReader(io.StringIO(texts["csv"]))] == ["0.99" if shown else ""] * 2


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
    assert list(content) == ["experiment", "preset", "baseline", "margin", "rows"]
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
    first, _, _ = (tmp_path / "report.md").read_text().partition("## A closer look")
    table = [line.split(" | ") for line in first.splitlines() if line.startswith("| b")]
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
    assert not re.findall(r"<(?:script .|link|img|iframe)|@import|url\((?!#)", written)
    assert written.count("<script>") == 1
    headers = [element.text for element in root.iter(f"{tag}th") if element.get("scope") == "row"]
    assert headers == [BASE, NASTY, NASTY]  # the table, and the closer look at what is not the baseline
    drawings = list(root.iter("{http://www.w3.org/2000/svg}svg"))
    assert len(drawings) == 7 and all(drawing.get("aria-label") for drawing in drawings)
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


def test_a_column_more_is_in_every_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(row: report.Row) -> float:
        return float(np.mean([run.result["loss"] for run in row.runs if run.result]))

    more = columns.Column("loss", "final_loss", loss, lambda row: f"{loss(row):.5f}", lambda _: "loss: cross-entropy.")
    for module, name in ((files, "COLUMNS"), (files, "SHOWN"), (page, "SHOWN"), (columns, "SHOWN")):
        monkeypatch.setattr(module, name, (*getattr(module, name), more))
    console = rich.console.Console(width=120, file=io.StringIO(), record=True)
    comparison = compare("bypass", "digits", BASE, runs_of())
    write(comparison, tmp_path)
    print_table(comparison, console)
    for text in (console.export_text(), *((tmp_path / f"report.{e}").read_text() for e in ("md", "html"))):
        assert text.count("0.10000") == 2
    assert [row["final_loss"] for row in json.loads((tmp_path / "report.json").read_text())["rows"]] == [0.1, 0.1]
    assert [row["final_loss"] for row in csv.DictReader((tmp_path / "report.csv").open())] == ["0.1", "0.1"]
    assert "loss: cross-entropy." in (tmp_path / "report.md").read_text()


# Texts as the code wrote them when columns were numbers; where words were changed on purpose since, with those.
BEFORE = Path(__file__).parent / "before_columns"


@pytest.mark.parametrize("width", [80, 120])
def test_console_is_what_it_was_before_columns_were_declared_once(width: int) -> None:
    console = rich.console.Console(width=width, file=io.StringIO(), record=True)
    print_table(rows_of_every_kind(), console)
    assert console.export_text(styles=True) == (BEFORE / f"console_{width}.txt").read_text()


def test_markdown_and_page_are_what_they_were_before_columns_were_declared_once(tmp_path: Path) -> None:
    write(rows_of_every_kind(), tmp_path)
    drawn = "<meta http-equiv.*?>|<style>.*?</style>|<script>.*?</script>|<svg.*?</svg>"
    written = re.sub(drawn, "", (tmp_path / "report.html").read_text(), flags=re.DOTALL)
    assert (tmp_path / "report.md").read_text() == (BEFORE / "report.md").read_text()
    assert written == (BEFORE / "report.html").read_text()


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


def test_the_answer_names_what_can_be_told_for_all_rows_at_once_and_what_only_alone(tmp_path: Path) -> None:
    lifts = {
        f"bypass={number}": [0.001 * number, 0.001 * number + 0.006, 0.001 * number + 0.003] for number in range(1, 9)
    }
    runs = [a_run(BASE, seed, 0.9) for seed in range(3)]
    runs += [a_run(name, seed, 0.9 + lift) for name, values in lifts.items() for seed, lift in enumerate(values)]
    comparison = compare("bypass", "digits", BASE, runs)
    alone = [row.name for row in comparison.others if row.delta.verdict == "higher"]
    for_all = [row.name for row in comparison.others if (row.evidence.p_holm or 1) < 0.05]
    assert alone and not for_all
    text = wording.answer(comparison)
    assert f"of all rows at once none is distinguishable from the baseline {BASE}" in text
    assert "only by its own interval, not adjusted for the number of rows: " + alone[0] in text
    write(comparison, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["margin"] == 0.005
    assert {row["margin"] for row in csv.DictReader((tmp_path / "report.csv").open())} == {"0.005"}


def test_what_varied_between_seeds_knows_every_source_of_randomness() -> None:
    flat = {"data.mixup_alpha": 0.2, "data.cutout": 2, "data.flip": True, "model.dropout": 0.5}
    runs = [dataclasses.replace(run, settings=flat) for run in runs_of()]
    text = conditions.varied(compare("bypass", "digits", BASE, runs))
    for source in ("initialisation", "order of the images", "crops and flips", "mixup", "cutout", "dropout"):
        assert source in text
    assert len(Purpose) == 7  # one more needs a line in `conditions.RANDOM`


def test_the_cost_of_a_step_is_a_table_of_its_own_where_runs_say_it(tmp_path: Path) -> None:
    cost = {"step_seconds": 0.0125, "step_seconds_p90": 0.02, "device_memory_bytes": 3 * 2**29}
    told = [dataclasses.replace(run, final={**(run.final or {}), **cost}) for run in runs_of()]
    comparison = compare("bypass", "digits", BASE, told)
    write(comparison, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "## Speed" in text and f"| {SIMPLE} | 12.50 | 20.00 | 1.50 |" in text
    assert "<h2>Speed</h2>" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["rows"][0]["step_seconds"] == pytest.approx(0.0125)
    only_time = [dataclasses.replace(run, final={**(run.final or {}), "step_seconds": 0.5}) for run in runs_of()]
    assert [each.name for each in columns.speed(compare("bypass", "digits", BASE, only_time))] == [
        "name",
        "step_seconds",
    ]
    assert columns.speed(compare("bypass", "digits", BASE, runs_of())) == []
