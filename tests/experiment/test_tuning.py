"""Each setting's own recipe: the same trials for all, a choice by images of their own, and a sweep that uses it."""

import dataclasses
import io
import json
import types

import pytest
from rich.console import Console
from tiny_settings import TINY

from experiments import base
from squeezenet_jax.experiment import planning, slurm, sweep, tuning
from squeezenet_jax.experiment.progress import Progress
from squeezenet_jax.report import files, page
from squeezenet_jax.report.tuning import chose_the_recipe
from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.training import train

RATE = "optimizer.peak_lr"
BEST = {"none": 0.001, "simple": 0.004}  # in fake trainings


def experiment(*rows, **attributes):
    module = types.ModuleType("toy")
    module.BASELINE = {"model.bypass": "none"}
    module.sweep = lambda: rows or ({"model.bypass": b, "seed": s} for b in ("none", "simple") for s in (0, 1))
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def tuned(module=None, grid=(), seeds=1, **changes):
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    config = planning.unflatten(planning.flatten(base.get_config().to_dict()) | TINY | dotted)
    module = module or experiment()
    return tuning.plan(planning.plan(module, "digits", config, ()), module, grid, seeds)


@pytest.fixture
def trained(monkeypatch):
    """Replaces training by an evaluation that is the better the nearer the rate is to its setting's best."""
    started = []

    def fake(settings, directory, reporter, should_stop):
        started.append(directory.path.name)
        rate, best = settings.optimizer.peak_lr, BEST[settings.model.bypass]
        if rate > 0.5:
            return "diverged"
        at = {"split": "eval", "step": 1, "epoch": settings.train.epochs, "loss": 1.0, "top5": 1.0, "count": 50}
        directory.append_metrics({**at, "top1": 0.9 - 10 * abs(rate - best) + 0.001 * (settings.seed % 10)})
        return "done"

    monkeypatch.setattr(train, "train", fake)
    return started


def run(tuned, workdir, selection="", should_stop=lambda: False):
    part = tuned.sweep.only(selection) if selection else tuned.sweep
    progress = Progress(Console(file=io.StringIO()))
    return tuned.run(part, workdir, lambda plan, folder: sweep.run(plan, folder, progress, should_stop))


def record(workdir):
    return json.loads((workdir / "tuning.json").read_text())["settings"]


def test_every_setting_has_the_same_trials_on_training_images_with_seeds_of_their_own():
    plan = tuned(seeds=2)
    for setting in ("none", "simple"):
        trials = [run for run in plan.trials.runs if run.tuning["trial_of"] == f"bypass={setting}"]
        budget = [(run.settings.optimizer.peak_lr, run.settings.seed) for run in trials]
        assert budget == [(rate, seed) for rate in (0.001, 0.002, 0.004, 0.008) for seed in (1_000_000, 1_000_001)]
    for run_ in plan.trials.runs:  # of train[:96]
        assert (run_.settings.data.train_split, run_.settings.data.eval_split) == ("train[0:77]", "train[77:96]")
    assert plan.trials.baseline == "bypass=none,peak_lr=0.002"  # under the shared recipe


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", ("train[0:1146]", "train[1146:1433]")),
        ("train[:50%]", ("train[0:573]", "train[573:716]")),
        ("train[-100:]", ("train[1333:1413]", "train[1413:1433]")),
    ],
)
def test_any_way_to_write_the_training_images_is_cut_exactly(split, expected):
    data = tuned(data__train_split=split).sweep.runs[0].settings.data
    assert tuning.parts(data) == expected


def test_the_command_line_names_the_grid_or_the_experiment_or_it_is_four_rates():
    of_experiment = experiment(TUNE={"optimizer.weight_decay": (0.1, 0.01), "optimizer.name": ["sgd", "adamw"]})
    assert tuned(of_experiment).grid == {"optimizer.weight_decay": (0.01, 0.1), "optimizer.name": ("sgd", "adamw")}
    assert len(tuned(of_experiment).trials.runs) == 2 * 4
    assert tuned(of_experiment, [f"{RATE}=1, 1e-3"]).grid == {RATE: (0.001, 1.0)}
    assert tuned(optimizer__peak_lr=0.01).grid == {RATE: (0.005, 0.01, 0.02, 0.04)}


@pytest.mark.parametrize(
    ("grid", "changes", "message"),
    [
        ([f"{RATE}=0.1"], {}, rf"--grid: {RATE} has 1 value; at least 2"),
        (["optimizer.peek_lr=1,2"], {}, f'--grid: unknown value "optimizer.peek_lr"; .* did you mean "{RATE}"'),
        (["model.bypass=none,simple"], {}, r"--grid: model.bypass can't be tuned, toy sweeps it"),
        (["data.eval_split=test,train"], {}, r'--grid: unknown value "data.eval_split"'),
        ([f"{RATE}=1,-1"], {}, rf"{RATE}: -1.0 is not allowed"),
        ([RATE], {}, rf"--grid: {RATE} is without values; example: --grid {RATE}=0.001"),
        (
            [],
            {"data__eval_split": "train[90:97]", "data__allow_overlap": True},
            r"train\[90:97\] shares images with",
        ),
        ([], {"data__train_split": "train[:1]"}, r"data.train_split has too few images, 1, to hold some out"),
        (["optimizer.poly_power=0.5,1.0"], {}, "are the same run: what differs has no effect"),
    ],
)
def test_what_cannot_be_tuned_or_would_be_judged_on_what_is_evaluated_is_refused(grid, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        tuned(None, grid, **changes).trials  # noqa: B018
    assert "\n" not in str(caught.value)


def test_a_sweep_with_the_trials_seeds_or_of_the_rate_itself_is_refused():
    with pytest.raises(UserError, match="seed 1000001 is one of the trials' own"):
        tuned(experiment({"model.bypass": "none", "seed": 1_000_001}), seeds=2)
    rates = experiment({RATE: 0.1, "seed": 0}, {RATE: 0.2, "seed": 0}, BASELINE={RATE: 0.1})
    with pytest.raises(UserError, match=rf"--tune: toy sweeps {RATE}, which it would tune; name another with --grid"):
        tuned(rates)


def test_each_setting_runs_with_what_did_best_in_its_own_trials_and_the_report_says_so(trained, tmp_path):
    plan = tuned(grid=[f"{RATE}=0.001,0.002,0.004,0.9"])
    assert run(plan, tmp_path, "bypass=none,seed=0") == ["done"]  # a part first: with the trials that it needs
    assert len(trained) == 4 + 1
    assert record(tmp_path).keys() == {"bypass=none"}
    assert run(plan, tmp_path) == ["done"] * 4
    assert len(trained) == 4 + 4 + 4 == len(set(trained))
    for name, best in BEST.items():
        choice = record(tmp_path)[f"bypass={name}"]
        assert choice["chosen"] == {RATE: best}
        assert [point["top1"] is None for point in choice["points"]] == [False, False, False, True]  # it diverged
        started = RunDirectory(tmp_path / f"bypass={name},seed=1").read_description()
        assert started["settings"]["optimizer"]["peak_lr"] == best
        assert started["settings"]["data"]["eval_split"] == "test[:50]"
        assert (started["tuning"], started["overrides"]) == (choice, {"model.bypass": name, "seed": 1})
    assert record(tmp_path)["bypass=none"]["at_the_end"] == [RATE]
    assert record(tmp_path)["bypass=simple"]["at_the_end"] == []
    (trials, _), (chosen, _) = plan.comparable(tmp_path)
    comparison = sweep.compare(chosen, tmp_path)
    for text in (files.markdown(comparison), page.page(comparison)):
        assert "recipe chosen on: train[77:96]" in text.replace("\\", "")
        assert f"bypass=none: its {RATE}, 0.001, is the lowest that was tried" in text
        assert "tried: 0.001 87.00 %, 0.002 (shared) 88.00 %, 0.004 90.00 %, 0.9 none diverged." in text
        assert "validation" not in text
    assert [row.overrides[RATE] for row in comparison.rows] == [0.001, 0.004]
    assert not any(chose_the_recipe(run) for row in comparison.rows for run in row.runs)
    of_trials = sweep.compare(trials, tmp_path / "tuning")
    assert "images that choose the recipe (train[77:96]): this is validation, no test" in files.markdown(of_trials)
    assert all(chose_the_recipe(run) for row in of_trials.rows for run in row.runs)


def test_a_finished_tuning_is_not_run_again_nor_chosen_again(trained, tmp_path):
    plan = tuned(grid=[f"{RATE}=0.001,0.004"])
    run(plan, tmp_path)
    before = (tmp_path / "tuning.json").read_bytes()
    for metrics in tmp_path.glob("tuning/*/metrics.jsonl"):
        metrics.unlink()  # the choice stands without its trials
    count = len(trained)
    assert run(plan, tmp_path) == ["done"] * 4
    assert len(trained) == count
    assert (tmp_path / "tuning.json").read_bytes() == before


def test_a_tuned_sweep_can_be_reported_where_its_images_are_gone(trained, tmp_path, monkeypatch):
    run(tuned(), tmp_path)

    def gone(data):
        raise UserError("data.dir: no folder")

    monkeypatch.setattr(tuning, "parts", gone)
    ((plan, workdir),) = tuned().comparable(tmp_path)
    assert [row.overrides[RATE] for row in sweep.compare(plan, workdir).rows] == [0.001, 0.004]


def test_trials_that_are_stopped_choose_nothing_and_are_resumed(trained, tmp_path):
    plan = tuned(grid=[f"{RATE}=0.001,0.004"])
    stop = iter([False, False, False, True])
    assert run(plan, tmp_path, should_stop=lambda: next(stop)) == ["done", "done", "done", "preempted"]
    assert record(tmp_path).keys() == {"bypass=none"}  # whose trials are finished
    assert not (tmp_path / "bypass=none,seed=0").exists()
    ((compared, where),) = plan.comparable(tmp_path / "nothing")
    assert (compared, where) == (plan.trials, tmp_path / "nothing" / "tuning")
    assert run(plan, tmp_path) == ["done"] * 4
    assert len(trained) == len(set(trained)) == 4 + 4


def test_of_equal_rates_the_lowest_is_taken_and_of_none_too(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(BEST, "none", 0.0015)
    plan = tuned(grid=[f"{RATE}=0.9,0.002,0.001,0.8"])
    run(plan, tmp_path, "bypass=none,seed=0")
    assert record(tmp_path)["bypass=none"]["chosen"] == {RATE: 0.001}
    plan = tuned(grid=[f"{RATE}=0.9,0.8"])
    assert run(plan, tmp_path / "all diverge", "bypass=none,seed=0") == ["diverged"]
    choice = record(tmp_path / "all diverge")["bypass=none"]
    assert (choice["chosen"], choice["top1"]) == ({RATE: 0.8}, None)


def test_a_workdir_belongs_to_one_grid_or_to_one_shared_recipe(trained, tmp_path):
    plan = tuned(grid=[f"{RATE}=0.001,0.004"])
    sweep.claim(plan.sweep, tmp_path / "tuned")
    untuned = dataclasses.replace(plan.sweep, config=plan.sweep.config | {RATE: 0.002}, tuning={})
    sweep.claim(untuned, tmp_path / "shared")
    for claimed, workdir, message in (
        (untuned, "tuned", "--tune: .*tuned holds runs of --tune, which this command lacks; choose another --workdir"),
        (plan.sweep, "shared", "--tune: .*shared holds runs whose settings share one recipe; choose another --workdir"),
        (tuned(grid=[f"{RATE}=0.001,0.002"]).sweep, "tuned", r"tuning.grid.* is \[0.001, 0.004\] there"),
        (tuned(grid=[f"{RATE}=0.001,0.004"], seeds=2).sweep, "tuned", r"tuning.seeds is \[1000000\] there"),
        (tuned(grid=[f"{RATE}=0.001,0.004"], train__epochs=3.0).sweep, "tuned", "train.epochs is 2.0 there, 3.0 here"),
    ):
        with pytest.raises(UserError, match=message):
            sweep.claim(claimed, tmp_path / workdir)
    with pytest.raises(UserError, match="share one recipe"):
        run(plan, tmp_path / "shared")
    assert not trained


def test_on_slurm_the_sweep_is_an_array_that_waits_for_that_of_its_trials(trained, tmp_path, monkeypatch):
    plan, arrays, queue = tuned(grid=[f"{RATE}=0.001,0.004"]), [], set()

    def submit_array(task, runs, options, logs, checkout, name, after):
        logs.mkdir(parents=True, exist_ok=True)
        arrays.append((task.command, list(runs), after))
        ids = [f"{len(arrays)}_{number}" for number in range(len(runs))]
        queue.update(ids)
        return ids

    monkeypatch.setattr(slurm, "check_installed", lambda: None)
    monkeypatch.setattr(slurm, "_submit_array", submit_array)
    monkeypatch.setattr(slurm, "_queue", lambda: queue)
    how = (slurm.Options(), tmp_path / "launch.py", ["--tune"])
    told = plan.submit(plan.sweep, tmp_path, *how).lines("report")
    assert [line.split(":")[0] for line in told if "submitted job" in line] == ["trials", "sweep"]
    (of_trials, trials, first), (of_sweep, runs, second) = arrays
    assert of_trials[-2:] == ("--trials", f"--workdir={tmp_path}")
    assert of_sweep[-1] == f"--workdir={tmp_path}"
    assert (trials, runs) == ([run.name for run in plan.trials.runs], [run.name for run in plan.sweep.runs])
    assert (first, second) == ((), ("1",))
    assert plan.submit(plan.sweep, tmp_path, *how).pending and len(arrays) == 2  # all are queued
    queue.difference_update([f"2_{number}" for number in range(4)])
    plan.submit(plan.sweep, tmp_path, *how)
    assert arrays[2][2] == ("1_0", "1_1", "1_2", "1_3")
    run(plan, tmp_path)
    assert not plan.submit(plan.sweep, tmp_path, *how).pending


def test_a_single_setting_is_tuned_for_the_experiments_margin(trained, tmp_path):
    module = experiment({"seed": 0}, {"seed": 1}, BASELINE={}, MARGIN=2.0)
    plan = tuned(module)
    assert run(plan, tmp_path) == ["done"] * 2
    ((trials, folder), (swept, workdir)) = plan.comparable(tmp_path)
    assert (trials.baseline, trials.margin) == ("peak_lr=0.002", 2.0)
    assert sweep.compare(trials, folder).margin == 0.02
    assert sweep.compare(swept, workdir).rows[0].overrides[RATE] == 0.001


def test_trials_of_another_start_are_waited_for_also_where_they_cannot_be_seen(trained, tmp_path):
    statuses = iter(["done", "missing"])
    assert tuned().run(tuned().sweep, tmp_path, lambda plan, folder: [*statuses]) == ["done", "preempted"]
