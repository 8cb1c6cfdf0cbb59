"""StableHLO and LiteRT files: the round trip at two batch sizes, and what travels along."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from squeezenet_jax.export import export, from_weights
from squeezenet_jax.export.attachment import attach
from squeezenet_jax.network import lowering
from squeezenet_jax.system.errors import UserError

NEEDS = "is not installed (requirements-export.txt)"


def labels_inside(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("labels.json"))


def images(size, batch):
    return np.random.default_rng(3).normal(size=(batch, size, size, 3)).astype("float32")


def test_stablehlo_runs_without_this_code_at_two_batch_sizes(caffe_weights, tmp_path):
    pytest.importorskip("flatbuffers", reason=f"flatbuffers {NEEDS}")
    out = tmp_path / "net.stablehlo"
    network = from_weights(caffe_weights)
    assert export(network, out).difference.relative < 1e-5
    assert labels_inside(out) == list(caffe_weights.labels)
    np.savez(tmp_path / "images.npz", one=images(38, 1), five=images(38, 5))
    script = (
        "import sys, numpy, jax.export\n"
        "program = jax.export.deserialize(bytearray(open('net.stablehlo', 'rb').read()))\n"
        "images = numpy.load('images.npz')\n"
        "numpy.savez('logits.npz', **{name: program.call(images[name]) for name in images})\n"
        "assert not [name for name in sys.modules if name.startswith(('squeezenet_jax', 'flax'))]\n"
        "print(*program.platforms)"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["cpu", "cuda", "tpu"]
    logits = np.load(tmp_path / "logits.npz")
    for name, batch in (("one", 1), ("five", 5)):
        np.testing.assert_allclose(logits[name], network.reference(images(38, batch)), rtol=1e-4, atol=1e-5)


def test_the_program_is_portable_though_it_was_traced_on_a_cpu(make_weights):
    """Max-pooling is one operation, which every compiler knows, not the selects that are fast on a CPU."""
    pytest.importorskip("flatbuffers", reason=f"flatbuffers {NEEDS}")
    from squeezenet_jax.export.stablehlo_file import lower

    program = lower(from_weights(make_weights()), 1, ("cpu",)).mlir_module()
    assert program.count("stablehlo.reduce_window") == 3 and "stablehlo.select" not in program
    assert lowering._on_cpu()  # outside, all is as before


def litert():
    pytest.importorskip("litert_converter", reason=f"litert-converter {NEEDS}")
    return pytest.importorskip("ai_edge_litert.interpreter", reason=f"ai-edge-litert {NEEDS}")


def operations(interpreter):
    return sorted({detail["op_name"] for detail in interpreter._get_ops_details()} - {"DELEGATE"})


def test_tflite_equals_flax_and_every_operation_is_fused(caffe_weights, tmp_path):
    interpreter_module = litert()
    out = tmp_path / "net.tflite"
    network = from_weights(caffe_weights)
    assert export(network, out).difference.relative < 1e-5
    assert labels_inside(out) == list(caffe_weights.labels)
    interpreter = interpreter_module.Interpreter(str(out))
    # Neither a bias nor a ReLU of its own, and no transposition: the converter recognised everything. ADD is bypasses'.
    assert operations(interpreter) == ["ADD", "CONCATENATION", "CONV_2D", "MAX_POOL_2D", "MEAN", "PAD"]
    run = interpreter.get_signature_runner("serving_default")
    for batch in (1, 2):
        x = images(38, batch)
        np.testing.assert_allclose(run(image=x)["logits"], network.reference(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_norms_equal_flax(norm, make_weights, tmp_path):
    interpreter_module = litert()
    network = from_weights(make_weights(norm=norm, bypass="complex"))
    for suffix in (".stablehlo", ".tflite"):
        assert export(network, tmp_path / f"net{suffix}").difference.relative < 1e-5
    interpreter = interpreter_module.Interpreter(str(tmp_path / "net.tflite"))
    left = {"MUL", "RSQRT", "SUB", "DIV"} & set(operations(interpreter))
    assert bool(left) == (norm == "group")  # batch norm is folded


def test_tflite_without_bypass_has_no_sum(make_weights, tmp_path):
    interpreter_module = litert()
    out = tmp_path / "net.tflite"
    export(from_weights(make_weights()), out)
    assert "ADD" not in operations(interpreter_module.Interpreter(str(out)))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("suffix", [".stablehlo", ".tflite"])
@pytest.mark.parametrize("size", [36, 37])
@pytest.mark.parametrize("geometry", ["same", "caffe", "torchvision"])
@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
def test_every_geometry_and_rounding(version, geometry, size, suffix, make_weights, tmp_path):
    if suffix == ".tflite":
        litert()
    pytest.importorskip("flatbuffers", reason=f"flatbuffers {NEEDS}")
    weights = make_weights(size, version=version, geometry=geometry, bypass="simple")
    assert export(from_weights(weights), tmp_path / f"net{suffix}").difference.relative < 1e-5


def test_too_small_images_are_refused_before_any_work(make_weights, tmp_path):
    pytest.importorskip("flatbuffers", reason=f"flatbuffers {NEEDS}")
    with pytest.raises(UserError, match="image_size: 9 is too small"):
        export(from_weights(make_weights(), 9), tmp_path / "net.stablehlo")
    assert list(tmp_path.iterdir()) == []


def test_attachment_leaves_the_content_in_front_and_is_reproducible():
    both = attach(b"flatbuffer", {"labels": '["a"]'})
    assert both.startswith(b"flatbuffer") and both == attach(b"flatbuffer", {"labels": '["a"]'})
