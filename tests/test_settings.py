"""The strict conversion of a config into settings."""

import pytest

from experiments import base
from squeezenet_jax import settings
from squeezenet_jax.data import catalog
from squeezenet_jax.experiment.sweep import flatten, unflatten
from squeezenet_jax.network import architecture
from squeezenet_jax.system.errors import UserError


def converted(**changes):
    flat = flatten(base.get_config().to_dict()) | {name.replace("__", "."): value for name, value in changes.items()}
    return settings.from_config(unflatten(catalog.resolve(flat)))


def test_base_defaults_are_the_papers_network():
    defaults = catalog.resolve(base.DEFAULTS | {"data.image_size": 224})
    assert settings.from_config(unflatten(defaults)).model.architecture() == architecture.V1_0


@pytest.mark.parametrize("preset", base.PRESETS)
def test_every_preset_converts_and_fits_its_dataset(preset, tmp_path):
    for name in ("train/cat", "train/dog", "val/dog"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.jpg").touch()
    config = flatten(base.get_config(preset).to_dict()) | {"data.dir": str(tmp_path)}
    data = settings.from_config(unflatten(catalog.resolve(config))).data
    catalog.check(data)
    assert preset != "folder" or (data.num_classes, data.eval_split) == (2, "validation")


def test_presets_only_set_fields_that_base_has():
    for preset in base.PRESETS.values():
        assert preset.keys() <= base.DEFAULTS.keys()


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
        ({"data__image_size": 6}, "data.image_size: 6 is too small .* at least 7"),
        ({"data__image_size": 16.5}, "data.image_size: 16.5 is not allowed; it must be of type int"),
        ({"data__flip": 1}, "data.flip: 1 is not allowed; it must be of type bool"),
        ({"data__mean": (0.1, 0.2)}, "data.mean: .* one for each of the 1 channels"),
        ({"data__mean": (3.0,)}, "data.mean: .* from 0 to 1"),
        ({"data__mean": 0.5}, "data.mean: 0.5 is not allowed; it must be a tuple of float"),
        ({"optimizer__schedule": "cosin"}, 'did you mean "cosine"'),
        ({"optimizer__peak_lr": 0.0}, "optimizer.peak_lr: 0.0 is not allowed; it must be above 0"),
        ({"train__batch_size": 0}, "train.batch_size: 0 is not allowed; it must be at least 1"),
        ({"seed": -1}, "seed: -1 is not allowed"),
        ({"train__epochs": 2.0}, "optimizer.warmup_epochs: 2.0 .* below train.epochs, which is 2"),
        ({"train__epochs": float("inf")}, "train.epochs: inf is not allowed; it must be finite"),
    ],
)
def test_wrong_values_are_refused_with_field_value_and_what_is_allowed(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        converted(**changes)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_refused():
    config = catalog.resolve(base.DEFAULTS)
    del config["optimizer.momentum"]
    with pytest.raises(UserError, match=r"optimizer\.momentum missing"):
        settings.from_config(unflatten(config))


def test_an_int_is_taken_for_a_float_and_settings_are_hashable():
    assert converted(optimizer__peak_lr=1) == converted(optimizer__peak_lr=1.0)
    assert hash(converted(seed=1)) != hash(converted(seed=2))
