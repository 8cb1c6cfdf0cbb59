"""What is declared once in `settings.py`, and the presets that stand on it."""

import dataclasses
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from experiments import base
from squeezenet_jax import settings
from squeezenet_jax.data import catalog
from squeezenet_jax.experiment.planning import flatten, unflatten
from squeezenet_jax.network import architecture
from squeezenet_jax.settings import Settings
from squeezenet_jax.system import fields
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.training.train import Schedule

ROOT = Path(__file__).parents[1]


def converted(**changes):
    flat = flatten(base.get_config().to_dict()) | {name.replace("__", "."): value for name, value in changes.items()}
    return settings.from_config(unflatten(catalog.resolve(flat)))


def test_the_defaults_are_the_papers_network_solver_and_data():
    paper = settings.from_config(unflatten(catalog.resolve(settings.DEFAULTS)))
    assert paper.model.architecture() == architecture.V1_0
    assert (paper.data.num_classes, paper.data.image_size) == (1000, 224)
    assert paper.optimizer == dataclasses.replace(
        solver_of("imagenet").optimizer, poly_power=0.5
    )  # of another schedule


@pytest.mark.parametrize("preset", base.PRESETS)
def test_every_preset_converts_and_fits_its_dataset(preset, tmp_path):
    for name in ("train/cat", "train/dog", "val/dog"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.jpg").touch()
    config = flatten(base.get_config(preset).to_dict()) | {"data.dir": str(tmp_path)}
    data = settings.from_config(unflatten(catalog.resolve(config))).data
    catalog.check(data)
    assert preset != "folder" or (data.num_classes, data.eval_split) == (2, "validation")


# What presets leave at its default: what experiments are about, and what is the same for every dataset.
LEFT = {"model.bypass", "model.bypass_relu", "model.conv10_relu", "model.dropout", "model.dtype"}
LEFT |= {name for name in settings.DEFAULTS if name.startswith("compress.")}
LEFT |= {"model.norm", "model.activation", "model.squeeze_activation"}
LEFT |= {"model.base_e", "model.incr_e", "model.freq", "model.squeeze_ratio", "model.pct3x3"}
LEFT |= {"model.init_from", "model.start", "model.freeze"}
LEFT |= {"seed", "data.train_split", "data.eval_split", "data.num_classes", "data.decoder"}
LEFT |= {f"train.{name}" for name in ("accumulation_steps", "eval_batch_size", "eval_every_epochs", "stall_margin")}
LEFT |= {f"train.{name}" for name in ("log_every_steps", "checkpoint_every_steps", "keep_checkpoints")}


@pytest.mark.parametrize("preset", base.PRESETS)
def test_every_preset_is_complete(preset):
    named = base.PRESETS[preset]
    assert named.keys() <= settings.DEFAULTS.keys()
    for name in settings.DEFAULTS.keys() - settings.PLACES - LEFT - named.keys():
        other, values = settings.ONLY_WITH[name]
        assert named[other] not in values, f"{preset} leaves {name} open"
    assert {name for name in settings.DEFAULTS if name.startswith("optimizer.")} <= named.keys()


def solver_of(preset):
    return settings.from_config(unflatten(catalog.resolve(flatten(base.get_config(preset).to_dict()))))


def test_imagenet_has_the_solver_that_it_names():
    """DeepScale/SqueezeNet, SqueezeNet_v1.0/solver.prototxt and train_val.prototxt."""
    imagenet = solver_of("imagenet")
    solver, model, train = imagenet.optimizer, imagenet.model, imagenet.train
    assert (solver.name, solver.peak_lr, solver.momentum) == ("sgd", 0.04, 0.9)
    assert solver.schedule == "linear"  # lr_policy: "poly" of power 1
    assert (solver.weight_decay, solver.decay_bias) == (0.0002, True)  # Caffe's default decay_mult is 1
    assert (solver.warmup_epochs, solver.clip_norm) == (0, 0)
    assert train.batch_size == 32 * 16  # batch_size x iter_size
    steps_per_epoch = catalog.DATASETS["imagenet2012"].splits["train"] / train.batch_size
    assert Schedule.of(imagenet, steps_per_epoch).total_steps == 170_000
    assert (model.kernel_init, model.conv10_init) == ("lecun_uniform", "normal_0.01")  # xavier, gaussian
    assert (model.geometry, imagenet.data.image_size, model.dropout) == ("caffe", 227, 0.5)
    pixels = [[255 * x for x in field] for field in (imagenet.data.mean, imagenet.data.std)]
    assert pixels == [pytest.approx([123, 117, 104]), pytest.approx([1, 1, 1])]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__widht": 1.0}, 'config: unknown value "model.widht".*did you mean "model.width"'),
        (
            {"model__kernel_init": "he_normal"},
            "model.kernel_init: .*allowed: glorot_uniform, lecun_uniform, he_uniform",
        ),
        ({"model__version": "v2"}, 'model.version: unknown value "v2"; allowed: v1.0, v1.1'),
        ({"model__bypass": "residual"}, "model.bypass: .*allowed: none, simple, complex"),
        ({"model__dropout": 1.0}, "model.dropout: 1.0 is not allowed; it must be at least 0 and below 1"),
        ({"model__width": 1e308}, "model.width: 1e.308 is not allowed; it must be finite and below 1e.300"),
        ({"model__base_e": 10**400}, "config: its numbers make layers beyond all bounds"),
        ({"model__width": 1e299, "model__squeeze_ratio": 1e200}, "config: its numbers make layers beyond all bounds"),
        ({"data__image_size": 6}, "data.image_size: 6 is too small .* at least 7"),
        ({"data__image_size": 16.5}, "data.image_size: 16.5 is not allowed; it must be of type int"),
        ({"data__flip": 1}, "data.flip: 1 is not allowed; it must be of type bool"),
        ({"data__num_classes": 1}, "data.num_classes: 1 is not allowed; it must be at least 2"),
        ({"data__mean": (0.1, 0.2)}, "data.mean: .* one for each of the 1 channels"),
        ({"data__mean": ()}, "data.mean: .* one for each of the 1 channels"),
        ({"data__mean": (3.0,)}, "data.mean: .* from 0 to 1"),
        ({"data__mean": 0.5}, "data.mean: 0.5 is not allowed; it must be a tuple of float"),
        ({"data__cutout": 17}, "data.cutout: 17 is not allowed; it must be at most data.image_size, which is 16"),
        ({"optimizer__schedule": "cosin"}, 'did you mean "cosine"'),
        ({"optimizer__peak_lr": 0.0}, "optimizer.peak_lr: 0.0 is not allowed; it must be above 0"),
        ({"train__batch_size": 0}, "train.batch_size: 0 is not allowed; it must be at least 1"),
        ({"seed": -1}, "seed: -1 is not allowed"),
        (
            {"model__norm": "batch", "train__accumulation_steps": 2},
            "train.accumulation_steps: 2 is not allowed with model.norm batch, .*; use model.norm group",
        ),
        (
            {"model__norm": "batch", "model__init_from": "w", "model__freeze": "conv1"},
            "model.freeze: conv1 is not allowed with model.norm batch",
        ),
        *(
            (
                {"model__norm": norm, "compress__share": "kmeans"},
                f"compress.share: kmeans is not allowed; it must be none with model.norm {norm}",
            )
            for norm in ("batch", "group")
        ),
        ({"train__epochs": 2.0}, "optimizer.warmup_epochs: 2.0 .* below train.epochs, which is 2"),
        ({"train__epochs": float("inf")}, "train.epochs: inf is not allowed; it must be finite"),
        ({"model__start": "a\nb" * 1000}, r'model.start: unknown value "a\\nba.*\.\.\."; allowed: init_from, scratch'),
    ],
)
def test_wrong_values_are_refused_with_field_value_and_what_is_allowed(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        converted(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", settings.ROWS, ids=lambda row: row.name)
def test_every_bound_and_choice_holds(row):
    rule, wrong = row.rule, []
    wrong += ["no such choice"] if rule.choices else []
    wrong += [bound - 1 for bound in (rule.low, rule.above) if bound is not None]
    wrong += [bound + 1 for bound in (rule.high, rule.below) if bound is not None]
    wrong += [bound for bound in (rule.above, rule.below) if bound is not None]
    for value in wrong:
        value = float(value) if row.type == "float" else (float(value),) if row.type.startswith("tuple") else value
        with pytest.raises(UserError, match=row.name.replace(".", r"\.")):
            converted(**{row.name: value})


def test_every_setting_is_declared_with_its_meaning():
    for kind in [Settings, *(hint for hint in typing.get_type_hints(Settings).values() if hint is not int)]:
        for field in dataclasses.fields(kind):
            declared = field.metadata.get(fields.RULE)
            assert declared.meaning if declared else dataclasses.is_dataclass(typing.get_type_hints(kind)[field.name])


def test_a_missing_setting_has_its_default():
    whole = catalog.resolve(flatten(base.get_config().to_dict()) | {"data.image_size": 64})  # fits every stem
    resolved = {"data.num_classes", "data.eval_split"}  # what a dataset decides is always written down
    for row in settings.ROWS:
        if row.name not in resolved:
            config = {name: value for name, value in whole.items() if name != row.name}
            expected = settings.from_config(unflatten(whole | {row.name: row.default}))
            assert settings.from_config(unflatten(config)) == expected


def test_a_missing_group_has_its_defaults():
    config = unflatten(catalog.resolve(settings.DEFAULTS))
    assert settings.from_config({"data": config["data"]}) == settings.from_config(config)


def test_an_int_is_taken_for_a_float_and_settings_are_hashable():
    assert converted(optimizer__peak_lr=1) == converted(optimizer__peak_lr=1.0)
    assert hash(converted(seed=1)) != hash(converted(seed=2))


def test_the_page_of_the_documentation_is_up_to_date():
    assert (ROOT / "docs/settings.md").read_text() == settings.page()


def test_help_lists_every_setting_with_its_default_and_its_value_here():
    command = [sys.executable, "launch.py", "--config", "experiments/bypass.py:cifar10", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = [line.strip() for line in result.stdout.splitlines()]
    for row in settings.ROWS:
        line = lines.index(f"{row.name}: {row.rule.meaning}")
        assert row.rule.allowed in lines[line + 1] and f"default {row.default!r}" in lines[line + 1]
    rate = lines[lines.index("optimizer.peak_lr: learning rate after the warm-up") + 1]
    assert rate == "(float; above 0; default 0.04; here 0.001)"
