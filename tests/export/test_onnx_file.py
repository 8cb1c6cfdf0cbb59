"""The ONNX writer: every variant computes what flax computes, and every map has the size that the table says."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed (requirements-export.txt)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements-export.txt)")

import onnx

from squeezenet_jax.export import export, from_weights, onnx_file
from squeezenet_jax.export.verify import TOLERANCE
from squeezenet_jax.network.architecture import GEOMETRIES, STEMS, Metaparameters
from squeezenet_jax.system.errors import UserError

AXES = {"version": ("v1.0", "v1.1"), "bypass": ("none", "simple", "complex"), "geometry": GEOMETRIES, "stem": STEMS}
EVERY = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
# Each pair of version and bypass once, each pair of geometry and stem once.
FEW = [EVERY[6 * i + [0, 3, 4, 1, 2, 5][i]] for i in range(6)]
BATCHES = (1, 4)


def assert_equals_flax(weights, tmp_path, opset=None):
    out = tmp_path / "net.onnx"
    network = from_weights(weights)
    exported = export(network, out, opset=opset)
    assert exported.difference.relative < TOLERANCE / 10
    # Independently of the exporter's own verification: other images, other batches.
    run = onnx_file.load(out)
    images = np.random.default_rng(5).normal(size=(4, network.image_size, network.image_size, network.channels))
    expected = network.reference(images.astype("float32"))
    assert np.ptp(expected, axis=0).max() > 1e-3
    for batch in BATCHES:
        np.testing.assert_allclose(run(images[:batch].astype("float32")), expected[:batch], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", FEW, ids=lambda v: "-".join(v.values()))
def test_variants_equal_flax_at_two_batch_sizes(variant, make_weights, tmp_path):
    assert_equals_flax(make_weights(**variant), tmp_path)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("size", [36, 37])
@pytest.mark.parametrize("variant", EVERY, ids=lambda v: "-".join(v.values()))
def test_every_variant_equals_flax_at_two_batch_sizes(variant, size, make_weights, tmp_path):
    assert_equals_flax(make_weights(size, **variant), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("version", AXES["version"])
def test_full_width_at_full_size_equals_flax(version, make_weights, tmp_path):
    assert_equals_flax(make_weights(227, version=version, width=1.0, geometry="caffe"), tmp_path)


@pytest.mark.parametrize("activation", ["elu", "leaky_relu", "swish"])
def test_activations_equal_flax(activation, make_weights, tmp_path):
    variant = {"bypass": "complex", "activation": activation, "squeeze_activation": activation != "elu"}
    assert_equals_flax(make_weights(**variant), tmp_path)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_norms_equal_flax(norm, make_weights, tmp_path):
    weights = make_weights(norm=norm, bypass="complex", version="v1.0", width=0.25)
    assert_equals_flax(weights, tmp_path)
    operations = {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    assert ("InstanceNormalization" in operations) == (norm == "group") and "BatchNormalization" not in operations


def test_table_fields_beyond_the_named_variants_reach_the_file(make_weights, tmp_path):
    """No ReLU behind conv10 and the bypass convolutions, other metaparameters, grey images."""
    meta = Metaparameters(base_e=8, incr_e=4, freq=3, squeeze_ratio=0.5, pct3x3=0.3)
    weights = make_weights(33, channels=1, bypass="complex", width=0.25, metaparameters=meta)
    arch = dataclasses.replace(weights.arch, conv10_relu=False, bypass_relu=False)
    weights = dataclasses.replace(weights, arch=arch)
    assert (from_weights(weights).reference(np.ones((1, 33, 33, 1), "float32")) < 0).any()
    assert_equals_flax(weights, tmp_path)


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: "-".join(v.values()))
def test_every_map_has_the_size_of_the_trace(variant, make_weights):
    """For every residue of the image size modulo the network's total stride: odd sizes and ceil pools."""
    weights = make_weights(64, **variant)
    for size in range(64, 80, 1 if variant["bypass"] == "none" else 5):
        network = from_weights(weights, size)
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(onnx_file.convert(network)), strict_mode=True)
        values = [*model.graph.value_info, *model.graph.output]
        shapes = {v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in values}
        for layer in network.layers():
            height, width, channels = layer.shape
            assert shapes[layer.name] == ["batch", channels, height, width], (size, layer.name)
        assert shapes["logits"] == ["batch", weights.num_classes]


@pytest.mark.parametrize("opset", [onnx_file.MIN_OPSET, 13, 21])
def test_opsets(opset, make_weights, tmp_path):
    export(from_weights(make_weights()), tmp_path / "net.onnx", opset=opset)
    model = onnx.load(tmp_path / "net.onnx")
    assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]
    assert model.ir_version <= {9: 4, 13: 7, 21: 10}[opset]  # onnx/docs/Versioning.md: the release with that opset


@pytest.mark.parametrize("opset", [0, 8, 999])
def test_unknown_opset_is_one_line(opset, make_weights, tmp_path):
    with pytest.raises(UserError, match=rf"opset: {opset} is not allowed; it must be 9 to \d+"):
        export(from_weights(make_weights()), tmp_path / "net.onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_an_opset_that_onnxruntime_does_not_know_is_one_line(make_weights, tmp_path, monkeypatch):
    def from_the_future(network):
        model = onnx.load_from_string(convert(network))
        model.opset_import[0].version = 999
        return model.SerializeToString()

    convert = onnx_file.convert
    monkeypatch.setattr(onnx_file, "convert", from_the_future)
    with pytest.raises(UserError, match=r"onnxruntime .* refuses the file .*Opset 999"):
        export(from_weights(make_weights()), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_interface_and_metadata(make_weights, tmp_path):
    weights = make_weights()
    export(from_weights(weights), tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    assert [v.name for v in model.graph.input] == ["image"] and [v.name for v in model.graph.output] == ["logits"]
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert facts["labels"] == list(weights.labels)
    assert facts["preprocessing"]["crop"] == 35 and facts["preprocessing"]["channel_order"] == "RGB"
    assert facts["provenance"] == {"source": "random numbers"}
    assert facts["architecture"]["stem"]["features"] == weights.arch.stem.features


def test_a_name_that_is_no_utf8_is_recorded_as_json_escapes(make_weights):
    weights = dataclasses.replace(make_weights(35), provenance={"source": "caf\udce9.safetensors"})
    text = from_weights(weights).metadata_as_text()["provenance"]
    assert json.loads(text.encode().decode()) == {"source": "caf\udce9.safetensors"}


def test_another_image_size_scales_the_recorded_preprocessing(make_weights):
    network = from_weights(make_weights(35), 70)
    assert network.image_size == 70
    recorded = json.loads(network.metadata_as_text()["preprocessing"])
    assert (recorded["crop"], recorded["resize"]) == (70, 76)  # 38 / 35 of it


def test_same_network_same_bytes(make_weights):
    assert onnx_file.convert(from_weights(make_weights())) == onnx_file.convert(from_weights(make_weights()))
