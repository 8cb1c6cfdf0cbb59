"""Planning, skipping, resuming and comparing; with a training that costs nothing where training is not the point."""

import dataclasses
import io
import json
import types
from pathlib import Path

import pytest
from rich.console import Console
from tiny_settings import TINY

from experiments import base, finetune
from squeezenet_jax import settings
from squeezenet_jax.experiment import planning, sweep
from squeezenet_jax.experiment.progress import Progress
from squeezenet_jax.report.comparison import contrasted
from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.training import train


def experiment(seeds=2, bypasses=("none", "simple"), name="toy"):
    module = types.ModuleType(name)
    module.get_config = base.get_config
    module.BASELINE = {"model.bypass": "none"}
    module.sweep = lambda: ({"model.bypass": b, "seed": s} for b in bypasses for s in range(seeds))
    return module


def planned(module=None, overridden=(), **changes):
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    config = planning.unflatten(planning.flatten(base.get_config().to_dict()) | TINY | dotted)
    return planning.plan(module or experiment(), "digits", config, overridden)


def run(plan, workdir, should_stop=lambda: False):
    return sweep.run(plan, workdir, Progress(Console(file=io.StringIO())), should_stop)


@pytest.fixture
def fake_training(monkeypatch):
    """Replaces training by one evaluation line, and counts the runs that were started."""
    started = []

    def fake(settings, directory, reporter, should_stop):
        started.append(directory.path.name)
        directory.append_metrics({"split": "train", "step": 1, "epoch": 1, "loss": 1.0, "images_per_second": 10.0})
        top1 = 0.5 + 0.1 * settings.seed + (0.2 if settings.model.bypass == "simple" else 0.0)
        at = {"split": "eval", "step": 1, "epoch": settings.train.epochs}
        directory.append_metrics({**at, "loss": 1.0, "top1": top1, "top5": 0.9, "count": 50})
        return "done"

    monkeypatch.setattr(train, "train", fake)
    return started


def test_runs_are_named_by_what_is_swept():
    plan = planned()
    assert [run.name for run in plan.runs] == [f"bypass={b},seed={s}" for b in ("none", "simple") for s in (0, 1)]
    assert [run.setting for run in plan.runs] == ["bypass=none"] * 2 + ["bypass=simple"] * 2
    assert plan.baseline == "bypass=none"
    assert plan.runs[3].settings.model.bypass == "simple"
    assert plan.runs[3].settings.seed == 1


def test_only_selects_a_part():
    names = lambda selection: [run.name for run in planned().only(selection).runs]  # noqa: E731
    assert names("bypass=simple,seed=1") == ["bypass=simple,seed=1"]
    assert names("seed=0") == ["bypass=none,seed=0", "bypass=simple,seed=0"]
    assert names("seed=0,seed=1,bypass=none") == ["bypass=none,seed=0", "bypass=none,seed=1"]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("bypas=none", '--only: unknown value "bypas"; allowed: bypass, seed; did you mean "bypass"'),
        ("bypass=simpel", 'allowed: none, simple; did you mean "simple"'),
        ("seed=7", "--only seed: unknown value"),
    ],
)
def test_only_refuses_what_is_not_swept(selection, message):
    with pytest.raises(UserError, match=message):
        planned().only(selection)


def test_precedence_is_defaults_preset_experiment_sweep():
    config = base.get_config("digits", {"model.width": 2.0})
    assert config.model.stem == "small" != settings.DEFAULTS["model.stem"]  # the preset beats the defaults
    assert config.model.width == 2.0 != base.PRESETS["digits"]["model.width"]  # the experiment beats the preset
    assert planned(model__bypass="complex").runs[0].settings.model.bypass == "none"  # the sweep beats all of them


def test_a_group_of_settings_cannot_be_replaced():
    config = base.get_config().to_dict() | {"optimizer": {"name": "sgd"}}
    with pytest.raises(UserError, match=r"optimizer\.peak_lr.*missing; a group of fields can't be replaced"):
        planning.plan(experiment(), "digits", config, [])


def test_only_the_preset_that_finetune_is_about_is_cut_down_to_few_examples():
    splits = {preset: finetune.get_config(preset).data.train_split for preset in base.PRESETS}
    assert splits.pop(finetune.PRESET) == "train[:4%]"
    assert set(splits.values()) == {"train"}


def test_a_swept_key_cannot_be_set():
    with pytest.raises(UserError, match=r"model\.bypass: can't be set, toy sweeps it; --only bypass="):
        planned(overridden=["model.bypass"])


def test_finished_runs_are_skipped_and_the_comparison_is_paired_by_seed(fake_training, tmp_path):
    assert run(planned(), tmp_path) == ["done"] * 4
    assert len(fake_training) == 4
    assert run(planned(), tmp_path) == ["done"] * 4
    assert len(fake_training) == 4
    rows = {row.name: row for row in sweep.compare(planned(), tmp_path).rows}
    assert rows["bypass=simple"].top1.mean == pytest.approx(0.75)
    assert rows["bypass=simple"].delta.mean == pytest.approx(0.2)
    assert rows["bypass=simple"].images_per_second == 10.0


@pytest.mark.parametrize("status", ["stalled", "diverged"])
def test_a_run_that_came_to_its_verdict_is_not_started_again(fake_training, tmp_path, monkeypatch, status):
    works = train.train
    monkeypatch.setattr(train, "train", lambda *args: works(*args) and status)
    for _ in range(2):
        assert run(planned(), tmp_path) == [status] * 4
        assert len(fake_training) == 4


def test_a_part_of_a_sweep_runs_now_and_the_rest_later(fake_training, tmp_path):
    run(planned().only("seed=1"), tmp_path)
    comparison = sweep.compare(planned(), tmp_path)
    assert [(row.n, row.notes) for row in comparison.rows] == [(1, "1 missing"), (1, "1 missing")]
    run(planned(), tmp_path)
    assert sorted(fake_training) == sorted(run.name for run in planned().runs)


def test_a_failed_run_does_not_stop_the_others_and_is_tried_again(fake_training, tmp_path, monkeypatch):
    works = train.train

    def breaks(settings, *rest):
        if settings.seed == 0:
            raise RuntimeError("out of [/luck]\nand of memory")  # brackets: rich would read them as markup
        return works(settings, *rest)

    monkeypatch.setattr(train, "train", breaks)
    assert run(planned(), tmp_path) == ["failed", "done", "failed", "done"]
    failed = tmp_path / "bypass=none,seed=0"
    assert json.loads((failed / "status.json").read_text())["message"].startswith("RuntimeError: out of [/luck]")
    assert "Traceback" in (failed / "error.txt").read_text()
    monkeypatch.setattr(train, "train", works)
    assert run(planned(), tmp_path) == ["done"] * 4


def test_a_stop_ends_the_sweep_after_the_run_that_was_stopped(fake_training, tmp_path):
    stop = iter([False, True, True, True])
    assert run(planned(), tmp_path, lambda: next(stop)) == ["done", "preempted", "preempted", "preempted"]


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("module", "changes", "difference"),
    [
        (experiment(), {"train__epochs": 3.0}, "train.epochs is 2.0 there, 3.0 here"),
        (experiment(name="other"), {}, "experiment is toy there, other here"),
    ],
)
def test_a_workdir_with_other_runs_is_refused_and_left_as_it_is(fake_training, tmp_path, module, changes, difference):
    run(planned(), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"holds other runs: .*{difference}; choose another --workdir"):
        run(planned(module, **changes), tmp_path)
    assert contents(tmp_path) == before


def test_a_moved_data_directory_is_no_difference(fake_training, tmp_path):
    run(planned(), tmp_path)
    run(planned(data__dir="/elsewhere"), tmp_path)


def test_an_experiment_that_cannot_be_compared_is_refused_before_it_trains():
    module = experiment()
    module.BASELINE = {"model.bypass": "nothing"}
    with pytest.raises(UserError, match='BASELINE of toy: unknown value "bypass=nothing"; allowed: bypass=none'):
        planned(module)
    module = experiment()
    module.sweep = lambda: ({"model.width": width, "seed": 0} for width in (0.5, 0.5000001))  # the same name
    module.BASELINE = {"model.width": 0.5}
    with pytest.raises(UserError, match="its values do not give each run a name of its own"):
        planned(module)


def manifest_of(workdir, change):
    """Changes what a workdir's manifest says."""
    path = workdir / sweep.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_workdir_from_before_a_setting_existed_has_its_default(fake_training, tmp_path):
    run(planned(), tmp_path)
    neutral = [key for key, value in planned().config.items() if value == settings.DEFAULTS[key]]
    assert {"model.dropout", "optimizer.weight_decay", "train.stall_margin"} <= set(neutral)
    for key in neutral:
        manifest_of(tmp_path, lambda manifest, key=key: manifest["config"].pop(key))
    manifest_of(tmp_path, lambda manifest: manifest.pop("sweep"))  # which the first version did not write
    sweep.claim(planned(), tmp_path)
    with pytest.raises(UserError, match=r"model\.dropout is 0.5 there, 0.25 here"):
        sweep.claim(planned(model__dropout=0.25), tmp_path)


def test_a_workdir_keeps_the_seeds_that_it_was_planned_with(fake_training, tmp_path):
    run(planned(), tmp_path)
    asked = dataclasses.replace(planned(), asked_seeds="20")
    with pytest.raises(UserError, match="seeds is the experiment's own there, 20 here"):
        sweep.claim(asked, tmp_path)
    manifest_of(tmp_path, lambda manifest: manifest.pop("seeds"))  # as versions before wrote it
    with pytest.raises(UserError, match="seeds is the experiment's own there, 20 here"):
        sweep.claim(asked, tmp_path)
    sweep.claim(planned(), tmp_path)


def test_a_setting_that_only_the_workdir_knows_is_named(fake_training, tmp_path):
    run(planned(), tmp_path)
    manifest_of(tmp_path, lambda manifest: manifest["config"].update({"model.shuffle": 3}))
    with pytest.raises(UserError, match=r"model\.shuffle is 3 there, None here"):
        sweep.claim(planned(), tmp_path)


def test_a_workdir_of_another_sweep_is_refused(fake_training, tmp_path):
    run(planned(), tmp_path)
    module = experiment()
    module.sweep = lambda: ({"model.bypass": bypass} for bypass in ("none", "simple"))
    with pytest.raises(UserError, match=r"sweep is \['model.bypass', 'seed'\] there, \['model.bypass'\] here"):
        run(planned(module), tmp_path)


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(UserError, match=r"experiment\.json: cannot be read"):
        run(planned(), tmp_path)


def test_an_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir: .* is not writable"):
        run(planned(), tmp_path / "file" / "runs")


def test_the_run_directory_says_what_was_run(fake_training, tmp_path):
    run(planned(), tmp_path)
    record = json.loads((tmp_path / "bypass=simple,seed=1" / "run.json").read_text())
    assert record["settings"]["model"]["bypass"] == "simple"
    assert record["settings"]["seed"] == 1
    assert record["overrides"] == {"model.bypass": "simple", "seed": 1}
    assert {"jax", "flax", "python"} <= record["versions"].keys()
    assert len(record["devices"]) == 8
    assert record["labels"]["eval"]["images"] == 50
    assert record["git"] is None or len(record["git"].split("+")[0]) == 40


def test_metrics_lines_torn_by_a_kill_are_dropped(tmp_path):
    directory = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        directory.append_metrics({"split": "train", "step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "st')
    directory.truncate_metrics(after=2)
    assert [record["step"] for record in directory.read_metrics()] == [1, 2]


EXPERIMENTS = sorted(p for p in Path(__file__).parents[2].glob("experiments/*.py") if p.stem != "base")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiments_plan_on_every_preset(path, tmp_path):
    for folder in ("train/cat", "train/dog", "test/cat"):  # for the preset folder
        (tmp_path / folder).mkdir(parents=True)
        for number in range(30):
            (tmp_path / folder / f"{number}.jpg").touch()
    module = planning.load_experiment(str(path))
    for preset in base.PRESETS:
        config = module.get_config(preset)
        config.model.init_from = "weights.safetensors"  # what finetune.py asks for
        config.data.dir = str(tmp_path)
        if path.stem == "deep_compression" and config.model.norm != "none":
            with pytest.raises(UserError, match=r"kmeans is not allowed; it must be none with model\.norm"):
                planning.plan(module, preset, config.to_dict(), [])
            continue
        plan = planning.plan(module, preset, config.to_dict(), [])
        settings = {run.setting for run in plan.runs}
        assert plan.baseline in settings or {contrasted(name, plan.baseline) for name in settings} < settings
        assert len(plan.runs) >= 3 * len(settings)  # three seeds each, or more
    text = path.read_text()
    assert "?" in text.split("\n")[0]  # it says its question
    assert "Cost" in text.split('"""')[1]
