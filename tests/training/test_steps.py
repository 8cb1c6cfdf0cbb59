"""What one step computes: the same however the batch is cut up."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from squeezenet_jax.data import sources
from squeezenet_jax.data.batches import TrainBatches
from squeezenet_jax.data.loader import Loader
from squeezenet_jax.network import lowering
from squeezenet_jax.network.architecture import Architecture
from squeezenet_jax.system import devices
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.training import steps as steps_module
from squeezenet_jax.training.steps import TrainState, build_model, compile_steps, eval_step, init_state, train_step
from squeezenet_jax.training.train import check


def two_steps(settings, mesh=None):
    """The state after two steps, and their tallies."""
    mesh = mesh or devices.data_mesh()
    batches = TrainBatches(sources.load(settings.data, "train_split"), settings.train.batch_size, settings.seed)
    steps = compile_steps(dataclasses.replace(settings, seed=0), 10, batches.steps_per_epoch, mesh)
    key = devices.run_key(settings.seed, mesh)
    state = init_state(settings, steps, batches.batch_at(0)["image"], key, mesh)
    tallies = []
    for batch in Loader({"train": [batches.batch_at]}, None, print).stream("train", [0, 1]):
        state, tally = steps.train(state, devices.put_batch(batch, mesh), key)
        tallies.append(jax.device_get(tally))
    return jax.device_get(state.params), tallies


def test_accumulated_gradients_are_those_of_the_large_batch(tiny):
    """With dropout, crops and flips, whose random numbers belong to the examples (dropout 0.5 is the default)."""
    common = {
        "train__batch_size": 64,
        "data__crop_padding": 1,
        "data__flip": True,
        "optimizer__name": "sgd",  # Adam divides by gradients near 0 and turns rounding into steps
        "optimizer__peak_lr": 0.05,
        "optimizer__warmup_epochs": 0.0,
    }
    params, tallies = two_steps(tiny(**common))
    params_parts, tallies_parts = two_steps(tiny(**common, train__accumulation_steps=4))
    for whole, part in zip(tallies, tallies_parts, strict=True):
        assert whole["count"] == part["count"] == 64
        assert whole["top1"] == part["top1"]
        np.testing.assert_allclose(part["loss"], whole["loss"], rtol=1e-5)
        np.testing.assert_allclose(part["grad_norm"], whole["grad_norm"], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), params, params_parts)


def a_batch(data, size, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, data.image_size, data.image_size, data.channels), np.uint8),
        "label": rng.integers(0, data.num_classes, size, np.int32),
        "mask": np.ones(size, np.int32),
        "index": np.arange(size, dtype=np.int32),
    }


def one_step(settings, batch, parts=1):
    """What one step of plain gradient descent at rate 1 subtracts from the parameters, and its tally."""
    data, model, tx = settings.data, build_model(settings), optax.sgd(1.0)
    blank = np.zeros((1, data.image_size, data.image_size, data.channels), np.float32)
    params = model.init(jax.random.key(0), blank)["params"]
    step = functools.partial(train_step, model=model, tx=tx, learning_rate=lambda step: 1.0, data=data, parts=parts)
    state, tally = jax.jit(step)(TrainState(jnp.int32(0), params, tx.init(params)), batch, jax.random.key(1))
    return jax.tree.map(jnp.subtract, params, state.params), tally


@pytest.mark.parametrize("parts", [1, 2])
def test_masked_examples_change_nothing_about_a_step(tiny, parts):
    """The loss that a step descends on is the mean over the examples whose mask is 1, not over the batch's rows."""
    settings = tiny()
    alone = a_batch(settings.data, 4)
    others = a_batch(settings.data, 12, seed=1) | {"mask": np.zeros(12, np.int32)}
    among = {name: np.concatenate([alone[name], others[name]]) for name in alone}
    (update, tally), (update_among, tally_among) = one_step(settings, alone), one_step(settings, among, parts)
    assert tally["count"] == tally_among["count"] == 4
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(tally_among[name], tally[name], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), update_among, update)


def test_a_batch_of_which_nothing_could_be_read_leaves_the_parameters_alone(tiny):
    batch = a_batch(tiny().data, 4)
    update, tally = one_step(tiny(), batch | {"mask": np.zeros(4, np.int32)})
    assert (tally["count"], tally["loss"], tally["grad_norm"]) == (0, 0, 0)
    assert not any(leaf.any() for leaf in jax.tree.leaves(update))


def test_a_tally_in_parts_is_that_of_the_batch(tiny):
    """Up to the rounding of its loss; all that counts is in one of the parts."""
    settings = tiny(train__eval_batch_size=32)
    steps = compile_steps(settings, 10, 1.0, devices.data_mesh())
    params = steps.init(devices.run_key(0, devices.data_mesh()))
    data = settings.data
    batch = a_batch(data, 32) | {"mask": (np.arange(32) % 4 == 1).astype(np.int32)}

    def tally(parts):
        return jax.jit(functools.partial(eval_step, model=build_model(settings), data=data, parts=parts))(params, batch)

    whole, in_parts = tally(1), tally(4)
    assert whole["count"] == 8 and 0 < whole["top5"] < 8
    assert [in_parts[name] for name in ("count", "top1", "top5")] == [whole[name] for name in ("count", "top1", "top5")]
    np.testing.assert_allclose(in_parts["loss"], whole["loss"], rtol=1e-5)


def test_a_cpu_on_its_own_computes_large_batches_in_parts(tiny, monkeypatch):
    """The same two steps, up to rounding, as in one piece."""
    cut, sum_over_parts = [], steps_module._sum_over_parts

    def spy(function, batch, parts):
        cut.append(parts)
        return sum_over_parts(function, batch, parts)

    monkeypatch.setattr(steps_module, "_sum_over_parts", spy)
    settings = tiny(
        train__batch_size=64, train__eval_batch_size=32, optimizer__name="sgd", optimizer__warmup_epochs=0.0
    )
    alone = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    outcomes = []
    for most in (64, 16):
        monkeypatch.setattr(lowering, "MICROBATCH_IMAGES", most)
        compile_steps.cache_clear()
        outcomes.append(two_steps(settings, alone))
    compile_steps.cache_clear()
    assert cut == [1, 1, 4, 2]  # training, evaluation
    (params, tallies), (params_parts, tallies_parts) = outcomes
    for whole, part in zip(tallies, tallies_parts, strict=True):
        assert whole["count"] == part["count"] == 64 and whole["top1"] == part["top1"]
        np.testing.assert_allclose(part["loss"], whole["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), params, params_parts)


def test_batches_whose_examples_depend_on_each_other_stay_whole(tiny, monkeypatch):
    """However large: in training, in evaluation and in the commands."""
    cut = []
    monkeypatch.setattr(Architecture, "examples_independent", False)
    monkeypatch.setattr(steps_module, "_sum_over_parts", lambda f, batch, parts: [f(batch), cut.append(parts)][0])
    alone = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    compile_steps.cache_clear()
    compile_steps(tiny(train__batch_size=64, train__eval_batch_size=64), 10, 1.0, alone)
    compile_steps.cache_clear()
    assert cut == [1, 1]


def test_a_batch_that_cannot_be_cut_up_is_refused(tiny):
    with pytest.raises(UserError, match=r"train\.batch_size: 16 is not a multiple of the 8 devices x 4 accumulation"):
        check(tiny(train__accumulation_steps=4))


def test_the_host_is_never_more_than_eight_programs_ahead(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    pace = devices.Pace()
    for number in range(20):
        pace.add(number)
        assert waited == list(range(max(number - devices.IN_FLIGHT + 1, 0)))
