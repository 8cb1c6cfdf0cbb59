"""`python -m squeezenet_jax report`: from workdirs alone, without jax, data and experiment file."""

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from tiny_settings import TINY

from experiments import base
from squeezenet_jax.__main__ import main
from squeezenet_jax.experiment import planning, sweep, workdirs
from squeezenet_jax.runs.directory import RunDirectory, write_json
from squeezenet_jax.system.errors import UserError

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests/old_files/2026_11_before_the_library/workdir"
INPUTS = {"data": {"train": "96 images, aa", "test": "50 images, bb"}, "weights": "cc"}


def toy(seeds, bypasses=("none", "simple"), name="toy"):
    module = types.ModuleType(name)
    module.get_config, module.BASELINE = base.get_config, {"model.bypass": bypasses[0]}
    module.sweep = lambda: ({"model.bypass": b, "seed": s} for b in bypasses for s in seeds)
    return module


def finished(workdir, seeds, *, preset="digits", module=None, missing=(), inputs=INPUTS, lift=0.0, **changes):
    """A workdir as a sweep leaves it, of images in a folder that is not there; `missing` runs were not started."""
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    gone = {"data.name": "folder", "data.dir": "/nowhere", "data.num_classes": 10, "data.eval_split": "test"}
    config = planning.unflatten(planning.flatten(base.get_config().to_dict()) | TINY | gone | dotted)
    plan = planning.plan(module or toy(seeds), preset, config, [], recorded={})
    sweep.claim(plan, workdir)
    for run in plan.runs:
        if run.name not in missing:
            directory = RunDirectory(workdir / run.name)
            directory.path.mkdir()
            described = {"experiment": plan.experiment, "preset": preset, "overrides": dict(run.overrides)}
            described |= {"settings": dataclasses.asdict(run.settings), "inputs": inputs}
            write_json(directory.path / "run.json", described)
            top1 = 0.5 + 0.01 * run.settings.seed + 0.1 * (run.settings.model.bypass == "simple") + lift
            at = {"split": "eval", "step": 1, "epoch": run.settings.train.epochs, "loss": 1.0, "count": 50}
            directory.append_metrics({"split": "train", "step": 1, "epoch": 1, "loss": 1.0, "images_per_second": 9.0})
            directory.append_metrics({**at, "top1": top1, "top5": 0.9})
            directory.write_status("done")
    return workdir


def change(path, value):
    path.write_text(json.dumps(json.loads(path.read_text()) | value))


def test_a_report_is_rebuilt_without_jax_data_and_experiment(tmp_path):
    workdir = finished(tmp_path / "w", range(3), missing=["bypass=simple,seed=1"])
    none = "sys.modules.update(dict.fromkeys(('jax', 'flax', 'ml_collections', 'tensorflow_datasets', 'experiments')))"
    code = f"import sys; {none}; from squeezenet_jax.__main__ import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, "report", str(workdir)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "1 missing" in result.stdout and str(workdir / "report.html") in result.stdout
    rows = json.loads((workdir / "report.json").read_text())["rows"]
    assert [(row["name"], row["n"], row["notes"]) for row in rows] == [
        ("bypass=none", 3, ""),
        ("bypass=simple", 2, "1 missing"),
    ]
    assert rows[1]["delta"]["mean"] == pytest.approx(0.1)


def test_it_is_the_report_of_the_launcher(tmp_path):
    workdir = finished(tmp_path / "w", range(3))
    (rebuilt,), _ = workdirs.compare([workdir])
    gone = {"data.name": "folder", "data.dir": "/nowhere", "data.num_classes": 10, "data.eval_split": "test"}
    config = planning.unflatten(planning.flatten(base.get_config().to_dict()) | TINY | gone)
    assert rebuilt == sweep.compare(planning.plan(toy(range(3)), "digits", config, [], recorded={}), workdir)


def test_seeds_of_several_workdirs_are_united(tmp_path):
    a = finished(tmp_path / "a", range(3), missing=["bypass=none,seed=2"])
    b = finished(tmp_path / "b", range(2, 6), missing=["bypass=simple,seed=5"], data__dir="/elsewhere")
    shutil.rmtree(b / "bypass=simple,seed=2")  # a has it, as b has that of the other setting
    (comparison,), notes = workdirs.compare([b, a])
    assert [(row.name, row.seeds, row.notes) for row in comparison.rows] == [
        ("bypass=none", (0, 1, 2, 3, 4, 5), ""),
        ("bypass=simple", (0, 1, 2, 3, 4), "1 missing"),
    ]
    assert notes == []


def test_a_copy_of_a_run_counts_once_and_is_said(tmp_path):
    a = finished(tmp_path / "a", range(2))
    b = Path(shutil.copytree(a, tmp_path / "b"))
    (comparison,), notes = workdirs.compare([a, b])
    assert [row.n for row in comparison.rows] == [2, 2]
    assert len(notes) == 4 and f"{b}/bypass=none,seed=0 is the same run as {a}" in notes[0]
    RunDirectory(b / "bypass=none,seed=0").write_status("failed")  # what did not end yields to what did
    (comparison,), _ = workdirs.compare([b, a])
    assert [row.n for row in comparison.rows] == [2, 2]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"module": toy([2], name="norm")}, "a report is of one experiment; .*a is toy, .*b norm"),
        ({"train__epochs": 3.0}, r"a and .*b hold other runs: train\.epochs is 2\.0 and 3\.0"),
        ({"seeds": [1], "lift": 0.1}, "bypass=none, seed 1, is in .*a/.* and .*b/.* with other results; remove one"),
        (
            {"module": toy([2], ("simple", "none"))},
            "--baseline: differs between the workdirs: bypass=none, bypass",
        ),
        (
            {"inputs": INPUTS | {"data": {"test": "60 images, dd"}}},
            "other images were read: 50 images, bb by .*a/bypass=none,seed=0, 60 images, dd by .*b/bypass=none,seed=2",
        ),
        ({"inputs": INPUTS | {"weights": "ee"}}, "other weights were read: cc by .*, ee by .*b/bypass=none,seed=2"),
    ],
)
def test_workdirs_that_cannot_be_compared_are_refused(other, message, tmp_path):
    a, b = finished(tmp_path / "a", range(2)), finished(tmp_path / "b", **({"seeds": [2]} | other))
    with pytest.raises(UserError, match=message) as caught:
        workdirs.compare([a, b])
    assert "\n" not in str(caught.value)


def test_a_setting_that_was_tuned_apart_is_refused(tmp_path):
    a, b = finished(tmp_path / "a", range(2)), finished(tmp_path / "b", [2])
    path = b / "bypass=simple,seed=2/run.json"
    recorded = json.loads(path.read_text())["settings"]
    recorded["optimizer"]["peak_lr"] = 0.5
    change(path, {"settings": recorded})
    with pytest.raises(UserError, match=r"bypass=simple was not run alike: optimizer.peak_lr is .*, 0.5 in .*b/"):
        workdirs.compare([a, b])


def test_presets_are_a_table_each_and_one_across(tmp_path, capsys):
    paths = [finished(tmp_path / p, range(2), preset=p, lift=lift) for p, lift in (("digits", 0.0), ("<b>", 0.2))]
    assert main(["report", *map(str, paths), "--out", str(tmp_path / "both")]) == 0
    out = tmp_path / "both"
    shown = capsys.readouterr().out
    assert "toy on digits" in shown and "toy on <b>" in shown
    assert [each["preset"] for each in json.loads((out / "report.json").read_text())["presets"]] == ["digits", "<b>"]
    rows = list(csv.DictReader((out / "report.csv").open()))
    assert [(row["preset"], row["name"]) for row in rows] == [
        (preset, f"bypass={b}") for preset in ("digits", "<b>") for b in ("none", "simple")
    ]
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert "| bypass=simple | 60.50 ± 0.71 | " in text and "&lt;b&gt;: top-1 %" in page
    assert "<b>:" not in page
    assert main(["report", *map(str, paths)]) == 2
    assert "--out: is missing" in capsys.readouterr().err


def test_an_old_workdir_has_its_runs_as_rows_and_is_told_its_baseline(tmp_path, capsys):
    command = ["report", str(OLD), "--out", str(tmp_path)]
    assert main(command) == 2
    assert "does not say it; name one of bypass=complex, bypass=none" in capsys.readouterr().err
    assert main([*command, "--baseline", "bypass=non"]) == 2
    assert 'did you mean "bypass=none"' in capsys.readouterr().err
    assert main([*command, "--baseline", "bypass=none"]) == 0
    assert "does not say which runs were planned" in capsys.readouterr().err
    rows = {row["name"]: row for row in json.loads((tmp_path / "report.json").read_text())["rows"]}
    assert {name: (row["n"], row["params"]) for name, row in rows.items()} == {
        "bypass=complex": (1, 17_826),
        "bypass=none": (1, 12_354),
    }


def test_what_is_no_workdir_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert f"{tmp_path} is no workdir of launch.py: it has no experiment.json" in capsys.readouterr().err
    (tmp_path / "experiment.json").write_text('{"experiment": "toy"}')
    assert main(["report", str(tmp_path)]) == 2
    assert "is not what this program writes" in capsys.readouterr().err


def test_a_manifest_follows_a_sweep_of_more_seeds_and_keeps_its_order(tmp_path):
    finished(tmp_path, range(2))
    finished(tmp_path, range(3), missing=[f"bypass={b},seed={s}" for b in ("none", "simple") for s in range(2)])
    manifest = json.loads((tmp_path / sweep.MANIFEST).read_text())
    assert list(manifest["runs"]) == [f"bypass={b},seed={s}" for b in ("none", "simple") for s in range(3)]
    assert manifest["runs"]["bypass=simple,seed=2"] == {"seed": 2, "model.bypass": "simple"}
    assert manifest["baseline"] == "bypass=none"
    change(tmp_path / sweep.MANIFEST, {"runs": {}})  # planned, run and then no longer planned: still a result
    (comparison,), _ = workdirs.compare([tmp_path])
    assert [row.seeds for row in comparison.rows] == [(0, 1, 2)] * 2


def test_a_start_adds_to_an_old_manifest_what_it_does_not_say(tmp_path):
    finished(tmp_path, range(2))
    path = tmp_path / sweep.MANIFEST
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({key: whole[key] for key in ("experiment", "preset", "config")}))
    with pytest.raises(UserError, match=r"--baseline: .* does not say it"):
        workdirs.compare([tmp_path])
    finished(tmp_path, range(2), missing=list(whole["runs"]))
    assert workdirs.compare([tmp_path])[1] == []
    assert json.loads(path.read_text())["runs"] == whole["runs"]


def test_the_smallest_of_several_margins_is_taken_and_said(tmp_path):
    a, b = finished(tmp_path / "a", range(3)), finished(tmp_path / "b", range(3, 6))
    change(b / "experiment.json", {"margin": 3.0})
    (comparison,), notes = workdirs.compare([b, a])
    assert comparison.margin == 0.005 and notes == [
        "the workdirs declare different margins; 0.5 points, the smallest, is taken"
    ]


def test_tuned_workdirs_are_joined_by_what_was_run(tmp_path):
    """The manifest has the shared recipe for what was not started."""
    a, b = finished(tmp_path / "a", range(3)), finished(tmp_path / "b", range(3, 6), missing=["bypass=simple,seed=3"])
    with pytest.raises(UserError, match=r"/b holds runs of --tune, .*/a runs whose settings share one recipe"):
        change(b / "experiment.json", {"tuning": {"grid": {}}})
        workdirs.compare([a, b])
    change(a / "experiment.json", {"tuning": {"grid": {}}})
    for workdir in (a, b):
        for path in workdir.glob("bypass=simple,*/run.json"):
            described = json.loads(path.read_text())
            described["settings"]["optimizer"]["peak_lr"] = 0.001
            write_json(path, described)
    (comparison,), _ = workdirs.compare([a, b])
    assert [row.n for row in comparison.rows] == [6, 5]
    change(a / "experiment.json", {"tuning": {"grid": {"optimizer.peak_lr": [0.001, 0.002]}}})
    with pytest.raises(UserError, match=r"tuned differently: grid is {'optimizer.peak_lr': \[0.001, 0.002\]} and {}"):
        workdirs.compare([a, b])
    change(a / "experiment.json", {"tuning": {"grid": {}}})
    for path in b.glob("bypass=simple,*/run.json"):
        described = json.loads(path.read_text())
        described["settings"]["optimizer"]["peak_lr"] = 0.004
        write_json(path, described)
    with pytest.raises(UserError, match=r"bypass=simple was not run alike: optimizer.peak_lr is 0.001 in .*, 0.004 in"):
        workdirs.compare([a, b])
