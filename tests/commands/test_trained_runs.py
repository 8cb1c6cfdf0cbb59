"""Whatever a command makes of a run that was really trained answers as the run does."""

import numpy as np
import pytest
from trained_run import trained

import squeezenet_jax
from squeezenet_jax.__main__ import main
from squeezenet_jax.weights import bundle, classify

pytestmark = [pytest.mark.long, pytest.mark.slow]

SHARED = {
    "compress.prune": "uniform",
    "compress.density": 0.5,
    "compress.prune_from": 0.25,
    "compress.prune_until": 0.5,
    "compress.share": "kmeans",
    "compress.share_from": 0.75,
    "compress.bits": 4,
    "train.ema_decay": 0.8,
}
RUNS = {
    "complex bypass": ("complex", {"model.conv10_relu": False}),
    "batch norm and an average": ("simple", {"model.norm": "batch", "train.ema_decay": 0.5}),
    "group norm": ("none", {"model.norm": "group", "model.activation": "swish"}),
    "shared weights and an average": ("simple", SHARED),
}
IMAGES = list(np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8))


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    kind, changes = RUNS[request.param]
    return trained(tmp_path_factory.mktemp("run"), kind, **changes)[0]


def logits(source, **options):
    return classify.logits(squeezenet_jax.load(source), IMAGES, **options)


def largest_difference(a, b):
    """As a share of the range that the answers differ in."""
    return np.abs(a - b).max() / np.ptp(b)


def test_every_file_that_is_made_of_it_has_its_logits(run, tmp_path, capsys):
    expected = logits(run)
    assert np.ptp(expected, axis=0).max() > 0
    assert main(["convert", str(run), str(tmp_path / "w.safetensors")]) == 0
    np.testing.assert_array_equal(logits(tmp_path / "w.safetensors"), expected)
    assert main(["export", str(run), str(tmp_path / "hub"), "--format", "hub"]) == 0
    np.testing.assert_array_equal(logits(tmp_path / "hub"), expected)
    assert "note:" not in capsys.readouterr().err  # it ended as it should


def test_a_compressed_file_of_it_comes_back(run, tmp_path, capsys):
    arch, out = squeezenet_jax.load(run).arch, tmp_path / "w.sqz"
    code = main(["compress", str(run), str(out), "--bits", "8"])
    if arch.norm == "group":
        assert code == 2 and "group normalisation" in capsys.readouterr().err
        return
    assert code == 0
    table = capsys.readouterr().out
    rows = [name for line in table.splitlines() for name in line.split() if name in convolutions(run)]
    assert rows == convolutions(run)
    assert largest_difference(logits(out), logits(run)) < 0.05
    if (run / "network.sqz").exists():
        np.testing.assert_array_equal(logits(run / "network.sqz"), logits(run))
        assert main(["compress", str(run), str(out)]) == 0  # it is quantised already: nothing is lost
        np.testing.assert_array_equal(logits(out), logits(run))
        assert main(["decompress", str(out), str(tmp_path / "again.safetensors")]) == 0
        np.testing.assert_array_equal(logits(tmp_path / "again.safetensors"), logits(run))


def convolutions(run):
    """The convolutions in the network's order."""
    return [layer.name for layer in squeezenet_jax.load(run).trace() if layer.kind == "conv"]


def test_other_runtimes_compute_its_logits(run, tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
    from squeezenet_jax.export.engines import onnxruntime

    assert largest_difference(logits(run, compile_forward=onnxruntime), logits(run)) < 1e-4
    for suffix in ("onnx", "stablehlo", "tflite"):
        assert main(["export", str(run), str(tmp_path / f"w.{suffix}")]) == 0  # verified by its own runtime


def test_its_parameters_are_in_the_networks_order(run):
    weights = squeezenet_jax.load(run)
    assert list(bundle.flatten(weights.params)) == list(weights.shapes())
