"""Schedules and optimisers against their formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from squeezenet_jax import settings
from squeezenet_jax.training import optimizer


@pytest.fixture
def options(tiny):
    def change(**changes):
        return dataclasses.replace(tiny().optimizer, **changes)

    return change


# Learning rate relative to the peak at a fraction t of the decay.
SHAPES = {
    "cosine": lambda t: 0.5 * (1 + np.cos(np.pi * t)),
    "linear": lambda t: 1 - t,
    "poly": lambda t: (1 - t) ** 0.5,
    "constant": lambda t: 1.0,
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("warmup_epochs", [0.0, 2.0])
def test_schedules(options, name, warmup_epochs):
    settings = options(schedule=name, peak_lr=0.3, warmup_epochs=warmup_epochs, poly_power=0.5)
    rate = optimizer.schedule(settings, total_steps=100, steps_per_epoch=10)
    warmup = int(10 * warmup_epochs)
    for step in range(100):
        t = (step - warmup) / (100 - warmup)
        expected = step / warmup if step < warmup else SHAPES[name](t)
        assert rate(step) == pytest.approx(0.3 * expected, rel=1e-4, abs=1e-7)


PARAMS = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}
GRADS = {"kernel": jnp.array([[0.1, 0.2]]), "bias": jnp.array([-0.3])}


def updates(settings, grads, steps=1):
    tx = optimizer.build_optimizer(settings, optax.constant_schedule(0.5))
    state, params = tx.init(PARAMS), PARAMS
    for _ in range(steps):
        change, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, change)
    return jax.tree.map(lambda new, old: new - old, params, PARAMS)


@pytest.mark.parametrize("decay_bias", [False, True])
def test_sgd_is_caffes(options, decay_bias):
    settings = options(name="sgd", momentum=0.9, weight_decay=0.01, decay_bias=decay_bias, clip_norm=0.0)
    got = updates(settings, GRADS, steps=2)
    for name, decay in (("kernel", 0.01), ("bias", 0.01 if decay_bias else 0.0)):
        w, v = np.asarray(PARAMS[name], np.float64), 0.0
        for _ in range(2):  # Caffe's SGDSolver: v = 0.9 v + lr (g + decay w); w -= v
            v = 0.9 * v + 0.5 * (np.asarray(GRADS[name]) + decay * w)
            w = w - v
        np.testing.assert_allclose(got[name], w - PARAMS[name], rtol=1e-5)


def test_adamw_decays_kernels_only(options):
    settings = options(name="adamw", weight_decay=0.1, decay_bias=False, clip_norm=0.0)
    zero = jax.tree.map(jnp.zeros_like, GRADS)
    got = updates(settings, zero)
    np.testing.assert_allclose(got["kernel"], -0.5 * 0.1 * PARAMS["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(got["bias"], 0.0)


def test_adamw_is_the_papers(options):
    """Loshchilov & Hutter, arXiv 1711.05101, Algorithm 2, with a gradient that changes from step to step."""
    settings = options(name="adamw", momentum=0.8, beta2=0.95, weight_decay=0.1, decay_bias=True, clip_norm=0.0)
    tx = optimizer.build_optimizer(settings, optax.constant_schedule(0.5))
    state, params = tx.init(PARAMS), PARAMS
    w, m, v = np.asarray(PARAMS["kernel"], np.float64), 0.0, 0.0
    for t, scale in enumerate((1.0, -3.0, 0.5), start=1):
        change, state = tx.update(jax.tree.map(lambda g, scale=scale: scale * g, GRADS), state, params)
        params = optax.apply_updates(params, change)
        g = scale * np.asarray(GRADS["kernel"], np.float64)
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        w = w - 0.5 * (m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8) + 0.1 * w)
        np.testing.assert_allclose(params["kernel"], w, rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_frozen_modules_stay_as_they_are_weight_decay_included(options, name):
    settings = options(name=name, weight_decay=0.01, decay_bias=True, clip_norm=1.0)
    params, grads = ({"conv1": tree, "conv10": tree} for tree in (PARAMS, GRADS))
    tx = optimizer.build_optimizer(settings, optax.constant_schedule(0.5), frozen={"conv1"})
    state = tx.init(params)
    for _ in range(2):
        change, state = tx.update(grads, state, params)
        assert not any(leaf.any() for leaf in jax.tree.leaves(change["conv1"]))
        assert all(leaf.all() for leaf in jax.tree.leaves(change["conv10"]))


def test_a_warmup_longer_than_the_training_is_all_that_there_is(options):
    rate = optimizer.schedule(options(peak_lr=0.3, warmup_epochs=9.0), total_steps=10, steps_per_epoch=10)
    np.testing.assert_allclose([rate(step) for step in range(10)], np.linspace(0, 0.3, 11)[:10], rtol=1e-5)


def test_clipping_scales_the_whole_gradient(options):
    settings = options(name="sgd", momentum=0.0, weight_decay=0.0, clip_norm=0.01)
    got = updates(settings, GRADS)
    assert float(optax.tree.norm(got)) == pytest.approx(0.5 * 0.01, rel=1e-3)  # float32 differences
    np.testing.assert_allclose(got["bias"] / got["kernel"][0, 0], GRADS["bias"] / GRADS["kernel"][0, 0], rtol=1e-3)


def test_every_name_that_settings_allow_is_built():
    assert optimizer.OPTIMIZERS.keys() == set(settings.OPTIMIZERS)
    assert optimizer.SCHEDULES.keys() == set(settings.SCHEDULES)
