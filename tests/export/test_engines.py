"""What `predict` and `evaluate` compute with: the same logits whatever the engine, and one line where it is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from squeezenet_jax import classify, weights
from squeezenet_jax.__main__ import main

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements-export.txt)")
pytest.importorskip("onnx", reason="onnx is not installed (requirements-export.txt)")

from squeezenet_jax.export import engines
from squeezenet_jax.weights import inference

ROOT = Path(__file__).parents[2]
ENGINES = {"xla": inference.compile_forward, "onnxruntime": engines.onnxruntime}
NETWORKS = [
    {"version": "v1.0", "geometry": "caffe", "bypass": "complex"},
    {"version": "v1.1", "norm": "batch", "bypass": "simple"},
    {"version": "v1.1", "norm": "group", "stem": "small", "activation": "elu"},
]


@pytest.mark.parametrize("variant", NETWORKS)
def test_both_engines_give_the_same_logits_for_few_images_and_a_whole_batch(make_weights, variant):
    network = make_weights(**variant)
    images_BHWC = np.random.default_rng(1).normal(size=(4, 35, 35, 3)).astype(np.float32)
    for count in (1, 4):
        expected, found = (compiled(network, 4, 4)(images_BHWC[:count]) for compiled in ENGINES.values())
        assert found.shape == expected.shape == (count, 6) and np.ptp(expected) > 0.1
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_library_takes_an_engine(make_weights):
    network = make_weights()
    image = np.random.default_rng(3).integers(0, 256, (40, 40, 3), np.uint8)
    asked = []

    def engine(*of_what):
        asked.append(of_what)
        return engines.onnxruntime(*of_what)

    expected, found = (dict(classify(network, image, engine=which)) for which in (None, engine))
    assert found == pytest.approx(expected, rel=1e-4) and len(found) == 5
    assert asked == [(network, 1, 1)]


@pytest.fixture
def files(make_weights, tmp_path):
    weights.save(tmp_path / "w.safetensors", make_weights())
    rng = np.random.default_rng(2)
    for name in make_weights().labels:
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 256, (50, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path


def test_evaluate_gives_the_same_numbers_and_says_which_engine_it_was(files, capsys):
    results = []
    for engine in ENGINES:
        command = ["evaluate", str(files / "w.safetensors"), f"folder:{files / 'images'}", "--batch-size", "4"]
        status = main([*command, "--format", "json", "--engine", engine])
        assert status == 0, capsys.readouterr().err
        results.append(json.loads(capsys.readouterr().out))
    assert [result.pop("engine") for result in results] == list(ENGINES)
    losses = [result.pop("loss") for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert results[0] == results[1] and results[0]["count"] == 12


def test_onnxruntime_needs_no_jax(files):
    """jax's import took longer than a photograph."""
    image = str(min(files.rglob("*.png")))
    for command in (["evaluate", "w.safetensors", "folder:images"], ["predict", "w.safetensors", image]):
        arguments = [*command, "--engine", "onnxruntime"]
        script = f"import sys; sys.modules['jax'] = None; from squeezenet_jax.__main__ import main; main({arguments})"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        output = subprocess.check_output([sys.executable, "-c", script], cwd=files, env=environment, text=True)
        assert "top-1" in output or " %  " in output


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_an_engine_that_is_not_installed_is_named_in_one_line(command, files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "squeezenet_jax.export.onnx_file", raising=False)
    assert main([command, str(files / "w.safetensors"), f"folder:{files / 'images'}", "--engine", "onnxruntime"]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "--engine: onnxruntime needs onnxruntime, which is not installed: pip install -r requirements-export" in line
