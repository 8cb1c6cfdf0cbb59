"""LSUV: every layer of every variant starts with the same output scale."""

import jax
import numpy as np
import pytest

from squeezenet_jax.network import initialize
from squeezenet_jax.training.steps import build_model


@pytest.mark.long
@pytest.mark.parametrize("bypass", ["none", "complex"])
def test_lsuv_gives_every_layer_the_wanted_output_scale(tiny, bypass):
    settings = tiny(model__bypass=bypass, model__width=0.25)
    model = build_model(settings)
    image = jax.random.normal(jax.random.key(0), (64, 8, 8, 1))
    params = model.init(jax.random.key(1), image[:1])["params"]
    layers = [layer.name for layer in settings.trace() if layer.params]
    stds = jax.jit(lambda params, image: initialize.output_stds(model, {"params": params}, image))
    scaled = initialize.lsuv(lambda params: stds(params, image), params, layers, 0.3)
    before, after = stds(params, image), stds(scaled, image)
    assert after.keys() == set(layers)
    assert len(layers) == 26 + (4 if bypass == "complex" else 0)
    np.testing.assert_allclose(list(after.values()), 0.3, rtol=1e-4)
    assert not np.allclose(list(before.values()), 0.3, rtol=0.1)
    for name in ("conv1", "conv10"):  # kernels are scaled, not drawn again, and biases stay 0
        ratio = scaled[name]["kernel"] / np.asarray(params[name]["kernel"])
        np.testing.assert_allclose(ratio, np.broadcast_to(ratio.flat[0], ratio.shape), rtol=1e-5)
        assert not scaled[name]["bias"].any()


def test_lsuv_leaves_a_dead_layer_and_unnamed_layers_alone(tiny):
    model = build_model(tiny())
    image = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    params = model.init(jax.random.key(1), image)["params"]
    dead = params | {"conv1": jax.tree.map(np.zeros_like, params["conv1"])}

    def stds(params, image):
        return initialize.output_stds(model, {"params": params}, image)

    scaled = initialize.lsuv(lambda params: stds(params, image), dead, ["conv1", "fire2/squeeze1x1"], 1.0)
    jax.tree.map(np.testing.assert_array_equal, scaled, dead)


@pytest.mark.parametrize("kernel_init", ["glorot_uniform", "lecun_uniform", "he_uniform", "lsuv"])
def test_every_initialiser_of_the_settings_is_one_of_the_network(tiny, kernel_init):
    model = build_model(tiny(model__kernel_init=kernel_init))
    assert model.kernel_init == ("orthogonal" if kernel_init == "lsuv" else kernel_init)
    jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 1), "float32"))
