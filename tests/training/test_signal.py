"""The scale of signal and gradient in every layer before step 0."""

import functools

import jax
import numpy as np
import pytest

from squeezenet_jax.data import sources
from squeezenet_jax.data.batches import TrainBatches
from squeezenet_jax.training import augment, objective, signal
from squeezenet_jax.training.steps import build_model, draw_variables


@pytest.mark.long
def test_scales_are_those_of_the_network_that_a_run_starts_from(tiny):
    settings = tiny(model__kernel_init="lsuv", model__lsuv_std=0.5, model__bypass="complex")
    found = signal.scales(settings)
    layers = [layer.name for layer in settings.trace() if layer.params]
    assert [scale.layer for scale in found] == layers and "fire2/bypass" in layers
    # LSUV makes the standard deviation 0.5, of the batch that is measured here, too; the mean need not be 0.
    assert all(0.5 * (1 - 1e-3) < scale.output < 2 for scale in found)
    assert found[0].output == pytest.approx(0.5, rel=0.5)
    assert all(0 < scale.gradient < np.inf for scale in found)


@pytest.mark.long
def test_a_gradient_is_what_the_loss_changes_by_when_an_output_does(tiny):
    """Of conv10, whose relu is left out: the gradient of an image's loss is (p - y) / (H W) in every place."""
    settings = tiny(model__conv10_relu=False)
    data, model = settings.data, build_model(settings)
    batch = TrainBatches(sources.load(data, "train_split"), 8, 0).batch_at(0)
    batch = {name: batch[name] for name in ("image", "label", "mask")}
    variables = jax.jit(functools.partial(draw_variables, model=model, data=data))(jax.random.key(0))
    rms = functools.partial(signal.root_mean_squares, model=model, data=data)
    output, gradient = jax.jit(rms)(variables, batch)["conv10"]
    logits = jax.jit(model.apply)(variables, augment.normalize(batch["image"], data.mean, data.std))
    (height, width, _) = next(layer.shape for layer in settings.trace() if layer.name == "conv10")
    error = jax.nn.softmax(logits) - objective.soft_labels(batch["label"], 10, smoothing=0.0)
    assert gradient == pytest.approx(float(np.sqrt(np.mean(np.square(error))) / (height * width)), rel=1e-4)
    assert output >= np.sqrt(np.mean(np.square(logits))) * (1 - 1e-5)  # a mean's square is at most the mean square
