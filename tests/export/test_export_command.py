"""`export` on the command line: what it prints, and one line for every mistake."""

import errno
import os
import sys

import pytest

import squeezenet_jax
from squeezenet_jax import weights
from squeezenet_jax.__main__ import main


@pytest.fixture
def weights_file(make_weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    weights.save(path, make_weights(36))
    return str(path)


def test_export_prints_what_it_wrote_and_how_far_off_it_is(weights_file, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements-export.txt)")
    out = tmp_path / "net.onnx"
    assert main(["export", weights_file, str(out), "--opset", "13", "--image-size", "40"]) == 0
    first, second, third, *budget = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{weights_file} -> {out}: {out.stat().st_size:,} bytes")
    assert second == "40x40x3 images, preprocessing test, 6 classes"
    assert third.startswith("largest difference from the flax model at batch 1 and 3: ")
    macs, parameters, activations = budget
    assert (
        macs.endswith(" MACs") and parameters.startswith("weights: ") and activations.startswith("peak activations: ")
    )
    assert list(tmp_path.iterdir()) == [out]


def test_the_library_writes_the_commands_file(weights_file, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements-export.txt)")
    assert main(["export", weights_file, str(tmp_path / "command.onnx"), "--opset", "13", "--image-size", "40"]) == 0
    network = squeezenet_jax.load(weights_file)
    written = squeezenet_jax.export_weights(str(tmp_path / "library.onnx"), network, image_size=40, opset=13)
    assert written.path == tmp_path / "library.onnx" and written.size == written.path.stat().st_size
    assert written.path.read_bytes() == (tmp_path / "command.onnx").read_bytes()


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("net.onnx", ["--labels", "nowhere.txt"], "nowhere.txt is not a file of class names"),
        ("net.onx", [], 'suffix: unknown value ".onx"; allowed: .onnx, .stablehlo, .tflite; did you mean ".onnx"?'),
        ("net", [], 'suffix: unknown value ""; allowed: .onnx, .stablehlo, .tflite'),
        ("nowhere/net.onnx", [], "there is no folder"),
        ("net.tflite", ["--opset", "17"], "opset: 17 is not allowed; only .onnx has one, and this is a .tflite file"),
        ("net.stablehlo", ["--image-size", "-1"], "1 <= crop <= resize"),
    ],
)
def test_one_line_for_a_wrong_command(out, options, message, weights_file, tmp_path, capsys):
    if out in ("net.stablehlo", "net.onnx"):  # past the check of packages
        pytest.importorskip("flatbuffers", reason="flatbuffers is not installed (requirements-export.txt)")
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements-export.txt)")
    assert main(["export", weights_file, str(tmp_path / out), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_out_may_be_a_link_in_the_home_folder_with_a_suffix_in_capitals(weights_file, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements-export.txt)")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link.ONNX").symlink_to("net.onnx")
    assert main(["export", weights_file, "~/link.ONNX"]) == 0
    assert (tmp_path / "link.ONNX").is_symlink() and (tmp_path / "net.onnx").stat().st_size > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.ONNX", "net.onnx"]


def test_a_full_disk_is_one_line_and_leaves_nothing(weights_file, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements-export.txt)")

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert main(["export", weights_file, str(tmp_path / "net.onnx")]) == 2
    error = capsys.readouterr().err
    assert f"OUT {tmp_path / 'net.onnx'}: cannot be written (No space left on device)" in error
    assert error.count("\n") == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "module", "package"),
    [
        ("net.onnx", "onnx_file", "onnx"),
        ("net.onnx", "onnx_file", "onnxruntime"),
        ("net.stablehlo", "stablehlo_file", "flatbuffers"),
        ("net.tflite", "tflite_file", "ai_edge_litert"),
        ("net.tflite", "tflite_file", "litert_converter"),
    ],
)
def test_a_missing_package_is_one_line_that_says_what_to_install(
    out, module, package, weights_file, tmp_path, capsys, monkeypatch
):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # what Python has for a module that cannot be imported
    monkeypatch.delitem(sys.modules, f"squeezenet_jax.export.{module}", raising=False)
    assert main(["export", weights_file, str(tmp_path / out)]) == 2
    error = capsys.readouterr().err
    assert "which is not installed: pip install -r requirements-export.txt" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
