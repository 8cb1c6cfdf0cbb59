"""The forward program of a number of images: parts, forms, and the same logits."""

import dataclasses
import functools
from unittest import mock

import numpy as np
import pytest
from small_network import CLASSES, SMALL, draw, program

from squeezenet_jax.network import lowering
from squeezenet_jax.network.lowering import convolution
from squeezenet_jax.network.model import SqueezeNet
from squeezenet_jax.weights import inference
from squeezenet_jax.weights.inference import compile_forward


@pytest.fixture(scope="module")
def network():
    return draw(width=0.125)


def test_a_large_batch_is_computed_in_parts_with_the_same_logits(network):
    images = np.random.default_rng(2).normal(size=(50, 33, 33, 3)).astype(np.float32)
    parts = functools.partial(lowering.num_microbatches, network.arch, image_size=33, training=False)
    assert (parts(64), parts(25)) == (2, 1)
    logits = compile_forward(network, 64)(images)
    halves = compile_forward(network, 25)
    expected = np.concatenate([halves(images[:25]), halves(images[25:])])
    assert logits.shape == expected.shape == (50, len(CLASSES)) and expected.std() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_with_batch_norms_averages_a_large_batch_is_computed_in_parts_too(monkeypatch):
    """Its examples depend on each other in training only."""
    seen, apply = [], SqueezeNet.apply
    monkeypatch.setattr(SqueezeNet, "apply", lambda self, v, image: [apply(self, v, image), seen.append(len(image))][0])
    network = draw(width=0.125, norm="batch")
    assert not network.arch.examples_independent
    compile_forward(network, 64)
    assert seen == [32]


def test_many_images_have_winograds_convolutions_and_the_same_logits():
    network = dataclasses.replace(draw(width=1.0), preprocessing=dataclasses.replace(SMALL, resize=72, crop=65))
    images = np.random.default_rng(2).normal(size=(3, 65, 65, 3)).astype(np.float32)
    with mock.patch.object(convolution, "winograd_conv", wraps=convolution.winograd_conv) as winograd_conv:
        few = compile_forward(network, 3, inference.MANY_IMAGES - 1)(images)
        assert winograd_conv.call_count == 0
        logits = compile_forward(network, 3, inference.MANY_IMAGES)(images)
    assert winograd_conv.call_count == 2  # fire2 and fire3
    with lowering.portable():
        expected = program(network)(images)
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(few, expected, rtol=1e-5, atol=1e-5)
