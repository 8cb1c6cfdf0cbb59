"""What one step computes: the same however the batch is cut up."""

import dataclasses
import functools
import weakref

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
from squeezenet_jax.network.architecture import NORMS, Architecture
from squeezenet_jax.system import devices
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.system.randomness import Purpose
from squeezenet_jax.training import augment, compilation
from squeezenet_jax.training import steps as steps_module
from squeezenet_jax.training.compilation import compile_steps, programs
from squeezenet_jax.training.steps import (
    Steps,
    TrainState,
    build_model,
    draw_variables,
    eval_step,
    init_state,
    output_stds_step,
    train_step,
)
from squeezenet_jax.training.train import check
from squeezenet_jax.weights.bundle import flatten, unflatten


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


@pytest.fixture
def parts(monkeypatch):
    """Into how many parts the batches of the programs that are compiled are cut."""
    cut, over_parts = [], steps_module._over_parts

    def spy(function, batch, parts):
        cut.append(parts)
        return over_parts(function, batch, parts)

    monkeypatch.setattr(steps_module, "_over_parts", spy)
    programs.clear()
    yield cut
    programs.clear()


@pytest.mark.long
def test_accumulated_gradients_are_those_of_the_large_batch(tiny, parts):
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
    assert parts == [1, 1, 4, 1]  # training, evaluation
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
    variables = model.init(jax.random.key(0), blank)
    params, model_state = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    step = functools.partial(train_step, model=model, tx=tx, learning_rate=lambda step: 1.0, data=data, parts=parts)
    before = TrainState(jnp.int32(0), params, tx.init(params), model_state)
    state, tally = jax.jit(step)(before, batch, jax.random.key(1))
    return jax.tree.map(jnp.subtract, params, state.params), tally | {"batch_stats": state.model_state}


@pytest.mark.long
@pytest.mark.parametrize(("parts", "norm"), [(1, "none"), (2, "none"), (1, "batch"), (2, "group")])
def test_masked_examples_change_nothing_about_a_step(tiny, parts, norm):
    """The loss that a step descends on is the mean over the examples whose mask is 1, not over the batch's rows."""
    settings = tiny(model__norm=norm)
    alone = a_batch(settings.data, 4)
    others = a_batch(settings.data, 12, seed=1) | {"mask": np.zeros(12, np.int32)}
    among = {name: np.concatenate([alone[name], others[name]]) for name in alone}
    (update, tally), (update_among, tally_among) = one_step(settings, alone), one_step(settings, among, parts)
    assert tally["count"] == tally_among["count"] == 4
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(tally_among[name], tally[name], rtol=1e-5 if norm == "none" else 1e-4)
    rtol, atol = (1e-4, 1e-6) if norm == "none" else (1e-3, 1e-5)  # behind a norm, of an array's scale

    def assert_close(found, expected):
        scale = 1.0 if norm == "none" else float(np.abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol * max(1.0, scale))

    jax.tree.map(assert_close, update_among, update)
    stats, stats_among = tally["batch_stats"], tally_among["batch_stats"]
    assert bool(jax.tree.leaves(stats)) == (norm == "batch")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), stats_among, stats)


def test_statistics_of_a_batch_are_not_those_of_its_parts(tiny):
    settings = tiny(model__norm="batch")
    with pytest.raises(ValueError, match="batch_stats cannot have its batch cut up"):
        one_step(settings, a_batch(settings.data, 4), parts=2)


@pytest.mark.parametrize("norm", NORMS)
def test_a_batch_of_which_nothing_could_be_read_leaves_the_parameters_alone(tiny, norm):
    settings = tiny(model__norm=norm)
    batch = a_batch(settings.data, 4)
    update, tally = one_step(settings, batch | {"mask": np.zeros(4, np.int32)})
    assert (tally["count"], tally["loss"], tally["grad_norm"]) == (0, 0, 0)
    assert not any(leaf.any() for leaf in jax.tree.leaves(update))


class Linear:
    """Stands in for the network: logits are linear in the mean colour; keeps what it is given."""

    def __init__(self):
        self.given = []

    def apply(self, variables, image, dropout_key_B=None, mask_B=None, mutable=None):
        self.given.append((image, dropout_key_B))
        params = variables["params"]
        logits = image.mean((1, 2)) @ params["conv1"]["kernel"] + params["conv10"]["bias"]
        return logits if mutable is None else (logits, {})


def linear_step(settings, batch, step=0, **changes):
    """A step of a `Linear` network, not compiled: (the network, parameters before, state after, tally)."""
    rng, data, model, tx = np.random.default_rng(0), settings.data, Linear(), optax.sgd(0.5, momentum=0.9)
    kernel = jnp.asarray(rng.normal(size=(data.channels, data.num_classes)), jnp.float32)
    params = {"conv1": {"kernel": kernel}, "conv10": {"bias": jnp.zeros(data.num_classes)}}
    state = TrainState(jnp.int32(step), params, tx.init(params))
    options = {"model": model, "tx": tx, "learning_rate": lambda step: 0.5 + step, "data": data} | changes
    state, tally = train_step(state, batch, jax.random.key(3), **options)
    return model, params, state, tally


def test_a_step_is_one_of_gradient_descent_on_the_mean_cross_entropy(tiny):
    settings = tiny()
    batch = a_batch(settings.data, 6) | {"mask": np.array([1, 1, 0, 1, 0, 1], np.int32)}
    model, params, state, tally = linear_step(settings, batch, step=2)
    (image, _), *_ = model.given
    x = np.asarray(image, np.float64).mean((1, 2))
    p = np.exp(x @ np.asarray(params["conv1"]["kernel"], np.float64))
    p /= p.sum(1, keepdims=True)
    error = (p - np.eye(10)[batch["label"]]) * batch["mask"][:, None] / 4  # of the loss by the logits
    gradients = {"conv1": {"kernel": x.T @ error}, "conv10": {"bias": error.sum(0)}}
    expected = jax.tree.map(lambda leaf, gradient: leaf - 0.5 * gradient, params, gradients)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), state.params, expected)
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradients)))
    assert tally["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert (tally["learning_rate"], state.step) == (2.5, 3)  # the rate of this step
    trace = jax.tree.leaves(state.opt_state)  # momentum, that the next step goes on with
    assert all(np.abs(leaf).max() > 0 for leaf in trace)


def test_a_frozen_modules_gradient_is_neither_computed_nor_counted(tiny):
    _, _, _, everything = linear_step(tiny(), a_batch(tiny().data, 4))
    _, params, state, tally = linear_step(tiny(), a_batch(tiny().data, 4), frozen={"conv1"})
    np.testing.assert_array_equal(state.params["conv1"]["kernel"], params["conv1"]["kernel"])
    assert state.params["conv10"]["bias"].any()
    assert tally["loss"] == everything["loss"] and 0 < tally["grad_norm"] < everything["grad_norm"]


def test_the_network_is_given_augmented_images_and_keys_that_anybody_can_draw_again(tiny):
    """Keys are as `randomness.py` says it, with the example's number last."""
    settings = tiny(data__crop_padding=2, data__flip=True)
    batch = a_batch(settings.data, 4) | {"index": np.array([7, 90, 3, 8], np.int32)}

    def keys(purpose, step):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), purpose), step)
        return jnp.stack([jax.random.fold_in(key, index) for index in batch["index"]])

    model, *_ = linear_step(settings, batch, step=5)
    ((image, dropout_key_B),) = model.given
    np.testing.assert_array_equal(jax.random.key_data(dropout_key_B), jax.random.key_data(keys(Purpose.DROPOUT, 5)))
    cropped = augment.crop_and_flip(batch["image"], keys(Purpose.AUGMENT, 5), padding=2, flip=True)
    assert not np.array_equal(cropped, batch["image"])
    np.testing.assert_array_equal(image, augment.normalize(cropped, settings.data.mean, settings.data.std))


RECIPE = {"data__mixup_alpha": 1.0, "data__cutout": 3, "data__crop_padding": 2, "data__flip": True}


def test_mixup_blends_a_seen_image_and_its_label_with_those_of_the_one_before_it(tiny):
    settings = tiny(**RECIPE)
    data, batch = settings.data, a_batch(settings.data, 4) | {"mask": np.array([1, 0, 1, 1], np.int32)}
    model, params, _, tally = linear_step(settings, batch, label_smoothing=0.1)
    alone, *_ = linear_step(dataclasses.replace(settings, data=dataclasses.replace(data, mixup_alpha=0.0)), batch)
    (seen, _), (image, _) = alone.given[0], model.given[0]

    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), Purpose.MIXUP), 0)
    keys = jnp.stack([jax.random.fold_in(key, index) for index in batch["index"]])
    share = augment.mixup_shares(keys, jnp.roll(batch["mask"], 1), alpha=1.0)
    assert share[2] == 1 and all(0.5 < share[i] < 1 for i in (0, 1, 3))  # the partner of 2 cannot be read
    np.testing.assert_allclose(image, augment.mix(seen, jnp.roll(seen, 1, axis=0), share), rtol=1e-5, atol=1e-6)
    target = 0.1 / 10 + 0.9 * augment.mix(jnp.eye(10)[batch["label"]], jnp.eye(10)[np.roll(batch["label"], 1)], share)
    logits = model.apply({"params": params}, image)
    expected = optax.softmax_cross_entropy(logits, target)[np.array([0, 2, 3])].sum()
    assert tally["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_a_batch_is_blended_the_same_however_it_is_cut_up(tiny):
    settings = tiny(**RECIPE)
    batch = a_batch(settings.data, 8) | {"mask": np.array([1, 0, 1, 1, 1, 1, 0, 1], np.int32)}
    _, _, whole, tally = linear_step(settings, batch, label_smoothing=0.1)
    _, _, cut, tally_cut = linear_step(settings, batch, label_smoothing=0.1, parts=2)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), whole.params, cut.params)
    assert tally_cut["loss"] == pytest.approx(float(tally["loss"]), rel=1e-5)


def test_the_average_forgets_its_start_and_then_decays_as_asked():
    x_T = np.random.default_rng(0).normal(size=200)
    ema, expected = {"x": jnp.float32(5)}, 5.0
    for step, x in enumerate(x_T):
        ema = steps_module.averaged(ema, {"x": jnp.float32(x)}, jnp.int32(step), decay=0.9)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * x
        assert ema["x"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    same = {"x": jnp.float32(0.1)}
    assert steps_module.averaged(same, same, jnp.int32(3), decay=0.9) == same  # of a frozen module


def test_an_evaluation_has_no_augmentation_and_no_dropout(tiny):
    settings, model = tiny(data__crop_padding=2, data__flip=True), Linear()
    batch, data = a_batch(settings.data, 4), settings.data
    params = {"conv1": {"kernel": jnp.ones((1, 10))}, "conv10": {"bias": jnp.arange(10.0)}}
    eval_step({"params": params}, batch, model=model, data=data)
    ((image, dropout_key_B),) = model.given
    assert dropout_key_B is None
    np.testing.assert_array_equal(image, augment.normalize(batch["image"], data.mean, data.std))


def test_kernels_are_drawn_with_a_key_of_their_own_for_images_of_the_settings_size(tiny):
    drawn = []

    class Network:
        def init(self, key, image):
            drawn.append((key, image.shape))
            return {"params": {}}

    draw_variables(jax.random.key(3), model=Network(), data=tiny().data)
    ((key, shape),) = drawn
    assert key == jax.random.fold_in(jax.random.key(3), Purpose.INIT) and shape == (1, 8, 8, 1)


def test_lsuv_measures_on_images_as_training_sees_them_but_not_augmented(tiny):
    data = tiny(data__crop_padding=2, data__flip=True).data
    image = a_batch(data, 4)["image"]

    class Network:  # whose only layer gives back its input
        def apply(self, variables, image, mask_B, mutable):
            return None, {"intermediates": {"conv1": {"output": (image,)}}}

    (std,) = output_stds_step({}, image, model=Network(), data=data).values()
    assert std == pytest.approx(float(np.std(augment.normalize(image, data.mean, data.std))), rel=1e-5)


def test_lsuv_leaves_layers_with_a_norm_alone(tiny):
    settings, mesh = tiny(model__kernel_init="lsuv", model__norm="group"), devices.data_mesh()
    names = [layer.name for layer in settings.trace() if layer.params]
    variables = {"params": unflatten({f"{name}/kernel": np.float32(2) for name in names})}
    stds = dict.fromkeys(names, 5.0)
    steps = Steps(None, lambda key: variables, lambda variables: variables["params"], None, None, lambda *_: stds)
    scaled = flatten(init_state(settings, steps, a_batch(settings.data, 8)["image"], devices.run_key(0, mesh), mesh))
    assert scaled.pop("conv10/kernel") == pytest.approx(2 * settings.model.lsuv_std / 5)
    assert set(scaled) == {f"{name}/kernel" for name in names} - {"conv10/kernel"}
    assert all(kernel == 2 for kernel in scaled.values())


@pytest.mark.parametrize("conv10_init", ["same", "normal_0.01"])
def test_lsuv_scales_what_the_initialiser_drew_and_not_what_has_a_scale_of_its_own(tiny, conv10_init):
    settings, mesh = tiny(model__kernel_init="lsuv", model__conv10_init=conv10_init), devices.data_mesh()
    drawn = {layer.name: np.float32(number) for number, layer in enumerate(settings.trace(), 1) if layer.params}
    drawn = unflatten({f"{name}/kernel": value for name, value in drawn.items()})
    seen = []

    def output_stds(variables, image):
        """Of a network whose layers' outputs have their kernels, single numbers, as standard deviations."""
        seen.append(image)
        return {name.removesuffix("/kernel"): kernel for name, kernel in flatten(variables["params"]).items()}

    steps = Steps(None, lambda key: {"params": drawn}, lambda variables: variables["params"], None, None, output_stds)
    first_image = a_batch(settings.data, 8)["image"]
    scaled = flatten(init_state(settings, steps, first_image, devices.run_key(0, mesh), mesh))
    conv10 = scaled.pop("conv10/kernel")
    assert conv10 == (
        pytest.approx(settings.model.lsuv_std) if conv10_init == "same" else flatten(drawn)["conv10/kernel"]
    )
    np.testing.assert_allclose(list(scaled.values()), settings.model.lsuv_std, rtol=1e-6)
    np.testing.assert_array_equal(seen[0], first_image)


def test_a_tally_in_parts_is_that_of_the_batch(tiny):
    """Up to the rounding of its loss; all that counts is in one of the parts."""
    settings = tiny(train__eval_batch_size=32)
    steps = compile_steps(settings, 10, 1.0, devices.data_mesh())
    variables = steps.init(devices.run_key(0, devices.data_mesh()))
    data = settings.data
    batch = a_batch(data, 32) | {"mask": (np.arange(32) % 4 == 1).astype(np.int32)}

    def evaluated(parts):
        step = functools.partial(eval_step, model=build_model(settings), data=data, parts=parts)
        return jax.jit(step)(variables, batch)

    (whole, of_each), (in_parts, of_each_in_parts) = evaluated(1), evaluated(4)
    assert whole["count"] == 8 and 0 < whole["top5"] < 8
    assert [in_parts[name] for name in ("count", "top1", "top5")] == [whole[name] for name in ("count", "top1", "top5")]
    np.testing.assert_allclose(in_parts["loss"], whole["loss"], rtol=1e-5)
    for name, value in of_each.items():  # in the order of the batch
        np.testing.assert_allclose(of_each_in_parts[name], value, rtol=1e-5)
    np.testing.assert_array_equal(of_each["index"], batch["index"])
    hits = (np.asarray(of_each["top"]) == batch["label"][:, None]) & (batch["mask"] == 1)[:, None]
    assert [hits[:, 0].sum(), hits.sum()] == [whole["top1"], whole["top5"]]


@pytest.mark.long
def test_a_cpu_on_its_own_computes_large_batches_in_parts(tiny, parts, monkeypatch):
    """The same two steps, up to rounding, as in one piece."""
    settings = tiny(
        train__batch_size=64, train__eval_batch_size=32, optimizer__name="sgd", optimizer__warmup_epochs=0.0
    )
    alone = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    outcomes = []
    for most in (64, 16):
        monkeypatch.setattr(lowering, "MICROBATCH_IMAGES", most)
        programs.clear()
        outcomes.append(two_steps(settings, alone))
    assert parts == [1, 1, 4, 2]  # training, evaluation
    (params, tallies), (params_parts, tallies_parts) = outcomes
    for whole, part in zip(tallies, tallies_parts, strict=True):
        assert whole["count"] == part["count"] == 64 and whole["top1"] == part["top1"]
        np.testing.assert_allclose(part["loss"], whole["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), params, params_parts)


def test_batches_whose_examples_depend_on_each_other_stay_whole(tiny, monkeypatch):
    """However large, in training."""
    cut = []
    monkeypatch.setattr(Architecture, "examples_independent", False)
    monkeypatch.setattr(steps_module, "_over_parts", lambda f, batch, parts: [f(batch), cut.append(parts)][0])
    alone = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    programs.clear()
    compile_steps(tiny(train__batch_size=64, train__eval_batch_size=64), 10, 1.0, alone)
    programs.clear()
    assert cut == [1, 2]  # training, evaluation: an example's logits are then its own


def test_a_batch_that_cannot_be_cut_up_is_refused(tiny):
    with pytest.raises(UserError, match=r"train\.batch_size: 16 is not a multiple of the 8 devices x 4 accumulation"):
        check(tiny(train__accumulation_steps=4))


def test_the_host_is_never_more_than_eight_programs_ahead(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    pace = devices.Pace()
    for number in range(20):
        pace.add(number)
        assert waited == list(range(max(number - 7, 0)))


def test_programs_of_two_settings_are_never_kept_together(tiny, monkeypatch):
    """They would be a fifth of the main job's memory."""

    class Programs:
        pass

    def compile_alone(*key):
        assert not kept and all(reference() is None for reference in made)
        made.append(weakref.ref(new := Programs()))
        return new

    made, kept = [], {}
    monkeypatch.setattr(compilation, "_compile_steps", compile_alone)
    monkeypatch.setattr(compilation, "programs", kept)
    settings, mesh = tiny(), devices.data_mesh()
    for steps in (10, 10, 20):
        assert compile_steps(settings, steps, 1.0, mesh) is made[-1]()
    assert len(made) == 2
