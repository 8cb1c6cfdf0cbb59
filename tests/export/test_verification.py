"""A file that computes something else than the flax model is caught and leaves nothing behind."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed (requirements-export.txt)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements-export.txt)")

import jax

from squeezenet_jax.export import Network, export, from_weights, onnx_file
from squeezenet_jax.export.verify import TOLERANCE, sample_images, verify
from squeezenet_jax.network.architecture import with_bypass
from squeezenet_jax.system.errors import UserError


@pytest.fixture(scope="module")
def network(caffe_weights):
    network = from_weights(caffe_weights)
    # Without conv10's ReLU no class is silent: each mistake must show in the logits.
    return dataclasses.replace(network, arch=dataclasses.replace(network.arch, conv10_relu=False))


def changed_arch(**changes):
    return lambda network: dataclasses.replace(network, arch=dataclasses.replace(network.arch, **changes))


def changed_kernel(network):
    """One filter of one layer, a hundredth larger."""
    params = jax.tree.map(np.copy, dict(network.params))
    params["fire5/expand3x3/kernel"][..., 0] *= 1.01
    return dataclasses.replace(network, params=params)


MISTAKES = {
    "floor pools": changed_arch(pool_ceil=False),
    "no padding of conv10": changed_arch(conv10_padding=0),
    "a ReLU more": changed_arch(conv10_relu=True),
    "a ReLU less": changed_arch(bypass_relu=False),
    "no bypass": lambda network: dataclasses.replace(network, arch=with_bypass(network.arch, "none")),
    "one filter": changed_kernel,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_graph_is_caught_and_leaves_no_file(mistake, network, tmp_path, monkeypatch):
    right = onnx_file.convert
    monkeypatch.setattr(onnx_file, "convert", lambda network: right(MISTAKES[mistake](network)))
    with pytest.raises(UserError, match=r"computes something else: .* no file was written"):
        export(network, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_swapped_expands_are_caught_and_an_older_file_stays(network, tmp_path, monkeypatch):
    out = tmp_path / "net.onnx"
    out.write_text("older")
    node = onnx_file._Graph.node

    def swapped(self, kind, name, inputs, **attributes):
        return node(self, kind, name, inputs[::-1] if kind == "Concat" else inputs, **attributes)

    monkeypatch.setattr(onnx_file._Graph, "node", swapped)
    with pytest.raises(UserError, match="computes something else"):
        export(network, out)
    assert out.read_text() == "older" and list(tmp_path.iterdir()) == [out]


def test_same_padding_on_the_wrong_side_is_caught(make_weights, tmp_path, monkeypatch):
    weights = make_weights(36, geometry="same")  # stride 2 on an even size: one more pixel at the end
    conv1, *others = from_weights(weights).layers()
    assert conv1.borders == (0, 1)
    wrong = [dataclasses.replace(conv1, borders=(1, 0)), *others]
    monkeypatch.setattr(Network, "layers", lambda network: wrong)
    with pytest.raises(UserError, match="computes something else"):
        export(from_weights(weights), tmp_path / "net.onnx")


def test_logits_that_do_not_depend_on_the_image_prove_nothing(network):
    dead = dataclasses.replace(network, variables=jax.tree.map(np.zeros_like, dict(network.variables)))
    with pytest.raises(UserError, match=r"cannot verify the export: .* do not depend on the image"):
        verify(dead, dead.reference, (1, 3))


def test_nan_and_wrong_shapes_are_differences(network):
    with pytest.raises(UserError, match=r"computes something else: .*nan"):
        verify(network, lambda images: network.reference(images) * np.nan, (1, 3))
    with pytest.raises(UserError, match="gives logits"):
        verify(network, lambda images: network.reference(images)[:, :-1], (1, 3))


def test_the_reported_difference_is_the_largest(network):
    def run(images):
        logits = network.reference(images).copy()
        logits[-1, 2] += 3e-6 * scale
        return logits

    scale = np.abs(network.reference(sample_images(network, 4))).max()
    difference = verify(network, run, (1, 3))
    assert difference.relative == pytest.approx(3e-6, rel=0.3)  # and the rounding between batch sizes
    assert difference.absolute == pytest.approx(difference.relative * scale)
    assert difference.relative < TOLERANCE
