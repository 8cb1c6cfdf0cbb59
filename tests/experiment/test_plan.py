"""Experiments of one's own: whatever a sweep may hold has a name, a folder and a way to be selected."""

import random
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from tiny_settings import TINY

from experiments import base
from squeezenet_jax.experiment import planning
from squeezenet_jax.system.errors import UserError


def experiment(*rows, baseline=None, name="toy"):
    module = types.ModuleType(name)
    module.get_config = base.get_config
    module.sweep = lambda: rows
    module.BASELINE = {k: v for k, v in rows[0].items() if k != "seed"} if baseline is None and rows else baseline or {}
    return module


def planned(*rows, baseline=None, changes=None, recorded=None, seeds=""):
    config = planning.unflatten(planning.flatten(base.get_config().to_dict()) | TINY | (changes or {}))
    return planning.plan(experiment(*rows, baseline=baseline), "digits", config, (), recorded, seeds)


def names(plan):
    return [run.name for run in plan.runs]


def swept(key, *values, seeds=1):
    return [{key: value, "seed": seed} for value in values for seed in range(seeds)]


@pytest.mark.parametrize(
    ("key", "values", "expected", "selections"),
    [
        ("optimizer.peak_lr", (1e-3, 2.0), ["peak_lr=0.001", "peak_lr=2"], ["1e-3", "0.001", ".001"]),
        ("model.width", (1.0, 0.125), ["width=1", "width=0.125"], ["1.0", "1", "1e0"]),
        ("model.bypass_relu", (True, False), ["bypass_relu=True", "bypass_relu=False"], ["true", "True"]),
        ("data.mean", ((0.5,), (0.25,)), ["mean=0.5", "mean=0.25"], ["(0.5,)", "0.5"]),
    ],
)
def test_values_of_any_type_name_and_select_their_run(key, values, expected, selections):
    plan = planned(*swept(key, *values), changes={"model.bypass": "complex"})
    assert names(plan) == [f"{name},seed=0" for name in expected]
    short = key.rsplit(".", 1)[-1]
    for selection in selections:
        assert names(plan.only(f"{short}={selection},seed=0")) == [f"{expected[0]},seed=0"]


def test_paths_and_commas_do_not_leave_the_name():
    plan = planned(*swept("model.init_from", "/a/b", "/c,d=e"))
    assert names(plan) == ["init_from=%2Fa%2Fb,seed=0", "init_from=%2Fc%2Cd%3De,seed=0"]
    assert names(plan.only("init_from=/a/b")) == names(plan)[:1]


def test_two_keys_with_one_last_name_are_told_apart():
    rows = [{"optimizer.name": name, "data.name": "digits", "seed": 0} for name in ("sgd", "adamw")]
    plan = planned(*rows)
    assert names(plan) == [f"optimizer.name={n},data.name=digits,seed=0" for n in ("sgd", "adamw")]
    assert names(plan.only("optimizer.name=sgd")) == names(plan)[:1]


def test_seeds_only_and_a_single_run_have_names():
    plan = planned({"seed": 0}, {"seed": 1})
    assert (names(plan), plan.baseline) == (["seed=0", "seed=1"], "run")
    assert {run.setting for run in plan.runs} == {"run"}
    plan = planned({})
    assert (names(plan), plan.baseline, plan.runs[0].setting) == (["run"], "run", "run")


def test_numpys_numbers_are_taken():
    plan = planned(*({"model.width": w, "seed": s} for w in np.array([0.125, 0.25]) for s in np.arange(2)))
    assert names(plan)[-1] == "width=0.25,seed=1"
    assert type(plan.runs[0].settings.seed) is int


def test_an_empty_sweep_is_one_line():
    with pytest.raises(UserError, match=r"sweep\(\) of toy: gives no runs"):
        planned(baseline={})


def test_a_sweep_that_compares_a_thing_with_itself_is_refused():
    with pytest.raises(UserError, match=r"crop_min_area=0\.08,seed=0 and crop_min_area=0\.5,seed=0 are the same run"):
        planned(*swept("data.crop_min_area", 0.08, 0.5))
    with pytest.raises(UserError, match="are the same run"):
        planned(*swept("optimizer.poly_power", 0.5, 1.0))
    for key, *values in (
        ("model.width", 0.5, 0.5001),  # filters are rounded
        ("model.pct3x3", 0.5, 0.5001),
        ("data.exif_orientation", True, False),  # digits are no files
        ("data.decoder", "pillow", "simplejpeg"),
        ("data.dir", "a", "b"),
    ):
        with pytest.raises(UserError, match="are the same run"):
            planned(*swept(key, *values))
    with pytest.raises(UserError, match="are the same run"):
        planned(*swept("optimizer.decay_bias", True, False), changes={"optimizer.weight_decay": 0.0})
    planned(*swept("optimizer.decay_bias", True, False), changes={"optimizer.weight_decay": 0.1})
    with pytest.raises(UserError, match="are the same run"):
        planned(*swept("data.mixup_alpha", 0.0, 0.2), changes={"train.batch_size": 1})
    planned(*swept("model.bypass_relu", True, False), changes={"model.bypass": "complex"})
    with pytest.raises(UserError, match="are the same run"):
        planned(*swept("model.bypass_relu", True, False), changes={"model.bypass": "simple"})


def test_what_was_run_although_it_compares_a_thing_with_itself_can_be_reported():
    recorded = {"data.num_classes": 10, "data.eval_split": "test"}
    assert len(names(planned(*swept("model.width", 0.5, 0.5001), recorded=recorded))) == 2


def test_what_a_dataset_decides_is_found_for_each_run(tmp_path):
    """A swept dataset has its own number of classes and its own split to evaluate."""
    for name in (
        "three/train/a",
        "three/train/b",
        "three/train/c",
        "three/val/a",
        "two/train/a",
        "two/train/b",
        "two/val/b",
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.png").write_bytes(b"x")
    rows = swept("data.dir", str(tmp_path / "three"), str(tmp_path / "two"))
    changes = {"data.name": "folder", "data.train_split": "train", "data.eval_split": "", "data.num_classes": 0}
    plan = planned(*rows, changes=changes | {"data.channels": 3, "data.mean": (0.5,), "data.std": (0.5,)})
    assert [run.settings.data.num_classes for run in plan.runs] == [3, 2]
    assert "data.num_classes" not in plan.config
    assert plan.config["data.eval_split"] == "validation"


def test_a_sweep_may_depend_on_the_settings_that_it_starts_from():
    seen = []
    module = experiment({"model.width": 0.25, "seed": 0})
    module.sweep = lambda settings: [seen.append(settings), {"model.width": 2 * settings.model.width, "seed": 0}][1:]
    module.BASELINE = {"model.width": 0.25}
    config = planning.unflatten(planning.flatten(base.get_config().to_dict()) | TINY)
    assert names(planning.plan(module, "digits", config, ())) == ["width=0.25,seed=0"]
    assert seen[0].data.num_classes == 10 and seen[0].model.width == TINY["model.width"]


def test_a_baseline_is_the_one_setting_that_has_its_values_or_of_several_each_rows_own():
    rows = [
        {"model.bypass": b, "model.width": w, "seed": 0} for b, w in (("none", 0.5), ("none", 1.0), ("simple", 0.5))
    ]
    assert planned(*rows, baseline={"model.bypass": "simple"}).baseline == "bypass=simple,width=0.5"
    assert planned(*rows, baseline={"model.bypass": "none"}).baseline == "bypass=none"  # at the same width


@pytest.mark.parametrize("preset", ["digits", "fashion_mnist", "cifar10_32"])
def test_equal_macs_widens_the_plain_network_to_the_cost_of_the_complex_bypass(preset):
    module = planning.load_experiment("experiments/equal_macs.py", Path(__file__).parents[2])
    config = module.get_config(preset)
    config.data.num_classes, config.data.eval_split = 10, "test"
    plan = planning.plan(module, preset, config.to_dict(), (), recorded={})
    plain, wider, simple, complex_ = (run for run in plan.runs if run.settings.seed == 0)
    assert plan.baseline == complex_.setting
    widths = [run.settings.model.width for run in (plain, wider, simple, complex_)]
    assert widths[0] == widths[2] == widths[3] == config.model.width < widths[1]
    assert wider.settings.model.bypass == "none"
    assert wider.cost[1] == pytest.approx(complex_.cost[1], rel=0.02) and wider.cost[1] > 1.2 * plain.cost[1]


def test_a_helper_module_beside_the_experiment_is_imported(tmp_path):
    (tmp_path / "my_values.py").write_text("WIDTHS = (0.125, 0.25)\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "from experiments import base\nfrom my_values import WIDTHS\nBASELINE = {'model.width': WIDTHS[0]}\n"
        "def get_config():\n    return base.get_config()\n"
        "def sweep():\n    yield from ({'model.width': w, 'seed': 0} for w in WIDTHS)\n"
    )
    module = planning.load_experiment(str(file))
    assert [row["model.width"] for row in module.sweep()] == [0.125, 0.25]


def test_an_experiment_that_cannot_be_imported_is_one_line(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("import nothing_of_that_name\n")
    with pytest.raises(UserError, match=r"broken\.py cannot be imported \(ModuleNotFoundError: No module named"):
        planning.load_experiment(str(file))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise OSError('no\\nway')", r"cannot be imported \(OSError: no way; own\.py, line 1\)"),
        (
            "def get_config(): 1 / 0",
            r"get_config of .*own\.py fails \(ZeroDivisionError: division by zero; own\.py, line 1",
        ),
        ("def get_config(): return None", r"get_config of .*own\.py fails \(AttributeError: 'NoneType' .* 'to_dict'\)"),
        ("def sweep(): yield {'seed': 1 / 0}", r"sweep\(\) of own: fails \(ZeroDivisionError: .*; own\.py, line 1\)"),
        ("BASELINE = 'none'", r"BASELINE of .*own\.py must be a mapping with settings as keys, not 'none'"),
        ("BASELINES = {}", r"own\.py has a BASELINES, which has no meaning; did you mean \"BASELINE\"\?"),
        ("REQUIRED = ['model.init_from']", r"REQUIRED of .*own\.py must be a mapping .*, not \['model\.init_from'\]"),
        ("MARGINS = 1", r"own\.py has a MARGINS, which has no meaning; did you mean \"MARGIN\"\?"),
        ("TUNES = {}", r"own\.py has a TUNES, which has no meaning; did you mean \"TUNE\"\?"),
        ("sweep = [{}]", r"sweep of .*own\.py must be a function"),
        ("def sweep(): return None", r"sweep\(\) of own: gives no mappings of settings \(TypeError: .* not iterable\)"),
    ],
)
def test_whatever_an_experiment_raises_is_one_line_that_says_where(tmp_path, code, message):
    path = tmp_path / "own.py"
    baseline = "" if "BASELINE" in code else "BASELINE = {}"
    path.write_text(
        f"{code}\nfrom experiments import base\n{baseline}\n"
        "if 'get_config' not in globals(): get_config = lambda: base.get_config('digits')\n"
        "if 'sweep' not in globals(): sweep = lambda: [{}]\n"
    )
    with pytest.raises(UserError, match=message) as caught:
        module = planning.load_experiment(str(path))
        preset, config = planning.get_config(module, str(path), "")
        planning.plan(module, preset, planning.unflatten(config), ())
    assert "\n" not in str(caught.value)


def test_an_experiment_may_have_dataclasses_with_annotations_as_text(tmp_path):
    """dataclasses look up their module by its name, which may be that of one of Python's."""
    for name in ("random", "with_a_dataclass"):
        path = tmp_path / f"{name}.py"
        path.write_text(
            "from __future__ import annotations\nimport dataclasses\nimport random\nfrom experiments import base\n"
            "@dataclasses.dataclass\nclass Row:\n    width: float\nrandom.Random(0)\n"
            "def sweep():\n    @dataclasses.dataclass\n    class Other:\n        width: float\n"
            "    return [{'model.width': Other(Row(0.25).width).width}]\n"
            "BASELINE, BASELINES = {}, []\nget_config = base.get_config\n"
        )
        assert planning.load_experiment(str(path)).sweep() == [{"model.width": 0.25}]
        assert sys.modules["random"] is random


def test_an_experiment_is_found_below_the_launcher_too(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(tmp_path)
    assert planning.load_experiment("experiments/bypass.py", root).__name__ == "bypass"


def test_recorded_values_stand_in_for_data_that_are_gone():
    changes = {"data.name": "folder", "data.dir": "/gone", "data.eval_split": "", "data.num_classes": 0}
    changes |= {"data.channels": 3, "data.mean": (0.5,), "data.std": (0.5,)}
    config = planning.unflatten(planning.flatten(base.get_config().to_dict()) | TINY | changes)
    recorded = {"data.num_classes": 7, "data.eval_split": "validation"}
    plan = planning.plan(experiment({"seed": 0}), "folder", config, (), recorded)
    data = plan.runs[0].settings.data
    assert (data.num_classes, data.eval_split) == (7, "validation")


GRID = [{"model.width": w, "model.bypass": b, "seed": 0} for w in (0.125, 0.25) for b in ("none", "simple")]


def test_a_baseline_names_a_setting_or_only_what_is_contrasted():
    assert planned(*GRID, baseline={"model.width": 0.25, "model.bypass": "none"}).baseline == "width=0.25,bypass=none"
    assert planned(*GRID, baseline={"model.width": 0.25}).baseline == "width=0.25"
    assert planned(*GRID, baseline={"model.bypass": "none"}).baseline == "bypass=none"


@pytest.mark.parametrize(
    ("rows", "baseline", "missing"),
    [
        (GRID, {"model.bypass": "complex"}, "width=0.125,bypass=complex"),
        (GRID, {"model.stem": "small"}, "model.stem=small"),
        (GRID, {}, "run"),
        (
            [*GRID, GRID[0] | {"model.width": 0.5}, GRID[1] | {"model.width": 1.0}],
            {"model.bypass": "none"},
            "width=1,bypass=none",
        ),
    ],
)
def test_a_baseline_that_leaves_a_setting_without_its_own_is_refused(rows, baseline, missing):
    with pytest.raises(UserError, match=f'BASELINE of toy: unknown value "{missing}"; allowed: width='):
        planned(*rows, baseline=baseline)


def test_an_experiment_may_say_which_difference_matters():
    module = experiment(*swept("model.width", 0.125, 0.25))
    config = planning.unflatten(planning.flatten(base.get_config().to_dict()) | TINY)
    assert planning.plan(module, "digits", config, ()).margin == 0.5
    module.MARGIN = 1
    assert planning.plan(module, "digits", config, ()).margin == 1.0
    module.MARGIN = -0.1
    with pytest.raises(UserError, match=r"MARGIN of toy: -0\.1 is not allowed; percentage points, above 0"):
        planning.plan(module, "digits", config, ())


def test_seeds_that_are_asked_for_take_the_place_of_the_experiments_own():
    rows = [{"model.bypass": bypass, "seed": seed} for bypass in ("none", "simple") for seed in (7, 8)]
    expected = [f"bypass={bypass},seed={seed}" for bypass in ("none", "simple") for seed in (2, 3, 4)]
    assert names(planned(*rows, seeds="2:5")) == expected
    assert {run.settings.seed for run in planned(*rows, seeds="3").runs} == {0, 1, 2}
    for wrong in ("0", "5:5", "-1", "a", "1,2"):
        with pytest.raises(UserError, match=f"--seeds: {wrong} is not allowed"):
            planned(*rows, seeds=wrong)
    with pytest.raises(UserError, match="--seeds: the sweep has no seeds"):
        planned({"model.bypass": "none"}, seeds="3")
