"""int8 files: they answer as the float file does, their ends are what was asked for, and a bad one is not written."""

import dataclasses
import json
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from squeezenet_jax import weights
from squeezenet_jax.__main__ import main
from squeezenet_jax.export import Int8, export, from_weights, int8, load_format, pictures_in
from squeezenet_jax.export.int8 import Affine, Decoded, Pictures
from squeezenet_jax.export.verify import sample_images
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import flatten, unflatten

COUNT = 12


def needs(suffix):
    for package in {".onnx": ("onnx", "onnxruntime"), ".tflite": ("litert_converter", "litert_quantizer")}[suffix]:
        pytest.importorskip(package, reason=f"{package} is not installed (requirements-export.txt)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures in two folders, one hidden, one that is no image."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(COUNT):
        coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        path = root / f"part{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(coarse).resize((40, 50), Image.Resampling.NEAREST).save(path)
    (root / ".hidden.png").write_bytes(b"")
    (root / "part1" / "notes.txt").write_text("no image")
    return root


@pytest.mark.parametrize(
    ("suffix", "variant", "options"),
    [
        (".onnx", {"bypass": "complex", "norm": "group"}, {"output_type": "int8"}),
        (".onnx", {"version": "v1.0", "geometry": "caffe", "activation": "swish"}, {"per_tensor": True}),
        (".onnx", {"norm": "batch"}, {"input_type": "uint8", "output_type": "int8"}),
        (".tflite", {"version": "v1.0", "geometry": "caffe"}, {"per_tensor": True}),
        (".tflite", {"bypass": "simple", "norm": "batch"}, {"input_type": "uint8", "output_type": "int8"}),
        (".tflite", {}, {"input_type": "int8"}),
    ],
)
def test_an_int8_file_gives_nearly_the_float_files_logits(suffix, variant, options, folder, make_weights, tmp_path):
    needs(suffix)
    source = make_weights(**{"width": 0.25} | variant)
    network = from_weights(source)
    float_path = tmp_path / f"float{suffix}"
    float_path.write_bytes(load_format(suffix).convert(network))
    asked = Int8(pictures_in(folder, source), max_drop=100, **options)
    written = export(network, tmp_path / f"int8{suffix}", int8=asked)
    assert (written.cost.count, written.cost.labelled, len(written.unreadable)) == (COUNT, False, 1)
    assert written.size < 0.8 * float_path.stat().st_size
    images = asked.pictures.read(network.preprocessing).image_NHWC
    float_, quantized = (load_format(suffix).load(path)(images) for path in (float_path, written.path))
    limit = 0.2 if variant.get("norm") == "group" else 0.1  # found: 0.14, and 0.06 otherwise
    assert np.abs(quantized - float_).max() < limit * np.abs(float_).max()
    assert not np.array_equal(quantized, float_)  # it is another file

    if suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(written.path, providers=["CPUExecutionProvider"])
        types = [re.sub(r"tensor\((.*)\)", r"\1", end[0].type) for end in (session.get_inputs(), session.get_outputs())]
        metadata = session.get_modelmeta().custom_metadata_map
        integers = [end for end in ("image", "logits") if f"quantization/{end}" in metadata]
        assert json.loads(metadata["labels"]) == list(source.labels)
    else:
        from ai_edge_litert.interpreter import Interpreter

        model = Interpreter(model_content=written.path.read_bytes())
        types = [np.dtype(end[0]["dtype"]).name for end in (model.get_input_details(), model.get_output_details())]
        integers = [name for name, x in zip(("image", "logits"), types, strict=True) if x != "float32"]
        assert json.loads(zipfile.ZipFile(written.path).read("labels.json")) == list(source.labels)
    wanted = [options.get(f"{end}_type", "float32") for end in ("input", "output")]
    assert [x.replace("float", "float32") if x == "float" else x for x in types] == wanted
    names = [name for name, x in zip(("image", "logits"), wanted, strict=True) if x != "float32"]
    assert integers == names


@pytest.fixture
def lettered(make_weights, tmp_path):
    """(weights of the classes a to f, their class folders with two pictures each)"""
    source, rng = dataclasses.replace(make_weights(), labels=tuple("abcdef")), np.random.default_rng(1)
    for number in range(12):
        path = tmp_path / "pictures" / "abcdef"[number % 6] / f"{number}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    weights.save(tmp_path / "net.safetensors", source)
    return source, tmp_path / "pictures"


def test_the_command_counts_accuracy_in_class_folders(lettered, tmp_path, capsys):
    needs(".onnx")
    out = tmp_path / "net.onnx"
    command = ["export", str(tmp_path / "net.safetensors"), str(out), "--int8", "--calibrate", str(lettered[1])]
    assert main([*command, "--max-drop", "100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = re.fullmatch(r"top-1 of 12 images: float (.*) %, int8 (.*) %, (.*) points \(allowed: -100\)", lines[3])
    assert float(found[2]) - float(found[1]) == pytest.approx(float(found[3]), abs=0.011)
    assert lines[5].startswith("weights: ") and lines[6].startswith("peak activations: ")


def test_a_file_that_answers_otherwise_is_refused_and_leaves_the_older_one(lettered, tmp_path, monkeypatch):
    needs(".onnx")
    import onnx

    from squeezenet_jax.export import onnx_int8

    def zeros(network, content, decoded, asked):
        model = onnx.load_from_string(content)
        for tensor in model.graph.initializer:
            tensor.raw_data = bytes(len(tensor.raw_data))
        return model.SerializeToString()

    monkeypatch.setattr(onnx_int8, "quantize", zeros)
    source, folder = lettered
    pictures = dataclasses.replace(pictures_in(folder, source), labels=None)
    out = tmp_path / "net.onnx"
    out.write_text("older")
    with pytest.raises(UserError, match=r"costs too much: int8 changes \d+ of 12 answers, .* no file was written$"):
        export(from_weights(source), out, int8=Int8(pictures))
    assert out.read_text() == "older"


def test_pictures_have_classes_where_their_folders_are_the_networks(folder, make_weights, tmp_path):
    six = make_weights()
    unknown = pictures_in(folder, six)
    assert unknown.labels is None and len(unknown.paths) == COUNT + 1 and "classes are not used" in unknown.notes[0]
    for name in ("crane", "hen"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"")
    two = {name: x[..., :2] if name.startswith("conv10") else x for name, x in flatten(six.params).items()}
    known = dataclasses.replace(six, params=unflatten(two), num_classes=2, labels=("hen", "crane"))
    assert pictures_in(tmp_path, known).labels == (1, 0)
    (tmp_path / "crane").rename(tmp_path / "train")
    (tmp_path / "hen").rename(tmp_path / "test")
    splits = pictures_in(tmp_path, dataclasses.replace(known, labels=()))
    assert splits.labels is None and "test and train seem to be splits, not classes" in splits.notes[0]


def test_many_pictures_are_thinned_evenly(make_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "MAX_PICTURES", 3)
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(b"")
    pictures = pictures_in(tmp_path, make_weights())
    assert [path.name for path in pictures.paths] == ["0.png", "3.png", "6.png"]
    assert pictures.notes == ("3 of 7 images are used, evenly spread",)


def test_the_cost_is_counted_as_evaluation_counts():
    image = np.zeros((20, 1, 1, 1), np.float32)
    right, wrong = np.eye(4, dtype=np.float32)[[2]], np.eye(4, dtype=np.float32)[[1]]

    def run(logits_1K):
        return lambda image_BHWC: np.repeat(logits_1K, len(image_BHWC), axis=0)

    labelled = Decoded(image, np.full(20, 2), ())
    assert (cost := int8.judge(run(right), run(right), labelled, None)).drop == 0 and cost.float_top1 == 20
    assert int8.judge(run(wrong), run(right), labelled, 0).drop == -100  # better is never refused
    with pytest.raises(UserError, match=r"top-1 of 20 images: float 100.00 %, int8 0.00 %, -100.00 points"):
        int8.judge(run(right), run(wrong), labelled, 99)
    with pytest.raises(UserError, match="costs too much"):  # NaN is no answer
        int8.judge(run(right), run(right * np.nan), labelled, None)


def test_integers_stand_for_numbers():
    affine = Affine("uint8", 0.5, 100)
    x = np.array([-50, -0.26, 0, 0.2, 77.5, 1000], np.float32)
    assert affine.quantize(x).tolist() == [0, 99, 100, 100, 255, 255]
    assert affine.dequantize(affine.quantize(x)).tolist() == [-50, -0.5, 0, 0, 77.5, 77.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8"], "--int8: needs --calibrate DIR"),
        (["--calibrate", "."], "--calibrate needs --int8"),
        (["--max-drop", "0"], "--max-drop: is of --int8"),
        (["--int8", "--calibrate", "nowhere"], "nowhere: is no folder"),
        (["--int8", "--calibrate", "{folder}", "--opset", "12"], "opset: 12 is not allowed; with --int8"),
        (["--int8", "--calibrate", "{folder}", "--max-drop", "-1"], "--max-drop: -1.0 is not allowed"),
    ],
)
def test_one_line_for_a_wrong_command(options, message, folder, make_weights, tmp_path, capsys):
    needs(".onnx")
    weights.save(tmp_path / "net.safetensors", make_weights())
    out = tmp_path / "net.onnx"
    given = [option.format(folder=folder) for option in options]
    assert main(["export", str(tmp_path / "net.safetensors"), str(out), *given]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and not out.exists()


def test_stablehlo_has_no_int8(make_weights, tmp_path):
    source = make_weights()
    with pytest.raises(UserError, match=r'unknown value ".stablehlo"; allowed: .onnx, .tflite'):
        export(from_weights(source), tmp_path / "net.stablehlo", int8=Int8(Pictures((), None)))


def test_integer_ends_change_no_logit_and_every_convolution_is_in_integers(make_weights, tmp_path):
    """An integer input is the float one, quantised by the caller: the same logits to the bit."""
    needs(".onnx")
    import onnx
    import onnxruntime

    from squeezenet_jax.export import onnx_file, onnx_int8

    network = from_weights(make_weights(bypass="complex"))
    decoded, content = Decoded(sample_images(network, 4), None, ()), onnx_file.convert(network)
    path, optimised = tmp_path / "net.onnx", tmp_path / "optimised.onnx"
    logits = []
    for ends in (("float32", "float32"), ("uint8", "uint8"), ("int8", "int8"), ("int8", "uint8")):
        asked = Int8(Pictures((), None), input_type=ends[0], output_type=ends[1])
        path.write_bytes(onnx_int8.quantize(network, content, decoded, asked))
        logits.append(onnx_file.load(path)(decoded.image_NHWC))
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(optimised)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        operations = [node.op_type for node in onnx.load(optimised).graph.node]
        assert operations.count("QLinearConv") == sum(layer.kind == "conv" for layer in network.layers())
        assert "Conv" not in operations
    for other in logits[1:]:
        np.testing.assert_array_equal(other, logits[0])


@pytest.mark.parametrize("per_tensor", [False, True])
def test_no_sum_of_two_products_overflows_16_bits(per_tensor, make_weights, tmp_path):
    """x86 without VNNI adds them there and saturates: 26 of 100 answers of the published v1.0 changed, instead of 6."""
    needs(".onnx")
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    from squeezenet_jax.export import onnx_file, onnx_int8

    network = from_weights(make_weights(bypass="complex"))
    decoded = Decoded(sample_images(network, 4), None, ())
    asked = Int8(Pictures((), None), per_tensor=per_tensor)
    content = onnx_int8.quantize(network, onnx_file.convert(network), decoded, asked)
    kernels = [x for x in map(numpy_helper.to_array, onnx.load_from_string(content).graph.initializer) if x.ndim == 4]
    assert len(kernels) == sum(layer.kind == "conv" for layer in network.layers())
    for kernel in kernels:
        assert kernel.dtype == np.int8
        pairs = np.abs(kernel.astype(int)).max(initial=0) * 2 * 255
        assert 2**14 < pairs < 2**15  # and no bit is given away

    options = onnxruntime.SessionOptions()  # what the pairs of nodes mean, in float
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (meant,) = session.run(None, {"image": decoded.image_NHWC.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(onnx_file.load(content)(decoded.image_NHWC), meant, atol=0.02 * np.abs(meant).max())
