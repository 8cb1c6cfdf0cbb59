"""classify: files, pictures and arrays to named classes, through one compiled program for each way to ask."""

import gc
import json
import weakref
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from weight_files import state_dict, tiny_weights, torch_zip

from squeezenet_jax import weights
from squeezenet_jax.__main__ import main
from squeezenet_jax.network import architecture
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights import inference
from squeezenet_jax.weights.bundle import Preprocessing, Weights, parameter_shapes, unflatten
from squeezenet_jax.weights.classify import BATCH_SIZE, classify

NAMES = ("cat", "dog", "emu")


def draw(channel_order="RGB", labels=NAMES):
    """A small network whose answers differ between images."""
    channels = len(channel_order)
    arch = architecture.build("v1.1", geometry="caffe", width=0.125, bypass="simple")
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(arch, channels=channels, num_classes=len(NAMES))
    flat = {name: rng.normal(size=s) * (3 / np.prod(s[:-1])) ** 0.5 * (len(s) > 1) for name, s in shapes.items()}
    flat = {name: x.astype(np.float32) for name, x in flat.items()}
    flat["conv10/bias"] += 3  # above the ReLU
    preprocessing = Preprocessing("small", 40, "squash", 33, channel_order, 1 / 255, (0.5,), (0.25,))
    return Weights(arch, unflatten(flat), len(NAMES), channels, preprocessing, labels)


@pytest.fixture(scope="module")
def network():
    return draw()


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """More images than a batch."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(1)
    paths = [folder / f"{i:02}.png" for i in range(BATCH_SIZE + 2)]
    for path in paths:
        four_colours = rng.integers(0, 256, (2, 2, 3), np.uint8)
        Image.fromarray(four_colours.repeat(15, axis=0).repeat(25, axis=1)).save(path)
    return paths


def assert_same(answer, expected):
    assert [name for name, _ in answer] == [name for name, _ in expected]
    np.testing.assert_allclose([p for _, p in answer], [p for _, p in expected], rtol=1e-4)


def test_probabilities_of_all_classes_fall_and_sum_to_one(network, paths):
    answer = classify(network, paths[0], top=100)
    probabilities = [probability for _, probability in answer]
    assert sorted(name for name, _ in answer) == sorted(NAMES)
    assert probabilities == sorted(probabilities, reverse=True) and len(set(probabilities)) == len(NAMES)
    assert sum(probabilities) == pytest.approx(1)
    assert classify(network, paths[0], top=2) == answer[:2]


def test_a_file_a_picture_and_an_array_are_the_same_image(network, paths):
    picture = Image.open(paths[0])
    expected = classify(network, paths[0])
    assert classify(network, str(paths[0])) == expected
    assert classify(network, picture) == expected
    assert classify(network, np.asarray(picture)) == expected
    assert classify(network, np.asarray(picture.convert("RGBA"))) == expected


def test_grey_images_and_networks_of_one_channel(network, paths):
    grey_HW = np.asarray(Image.open(paths[0]).convert("L"))
    colour_HWC = np.repeat(grey_HW[:, :, None], 3, axis=2)
    for each in (network, draw("L")):
        expected = classify(each, colour_HWC)
        assert classify(each, grey_HW) == expected
        assert classify(each, grey_HW[:, :, None]) == expected


def test_several_images_get_the_answers_that_each_gets_alone(network, paths):
    expected = [classify(network, path) for path in paths]
    assert len({answer[0] for answer in expected}) == len(paths)
    for several in (paths, tuple(map(str, paths)), (Image.open(path) for path in paths)):
        answers = classify(network, several)
        assert len(answers) == len(paths)
        for answer, alone in zip(answers, expected, strict=True):
            assert_same(answer, alone)
    assert classify(network, []) == []


def test_classes_without_names_are_numbered(network, paths):
    numbered = [f"class {NAMES.index(name)}" for name, _ in classify(network, paths[0])]
    assert [name for name, _ in classify(draw(labels=()), paths[0])] == numbered


def test_the_command_predicts_the_same(network, paths, tmp_path, capsys):
    weights.save(tmp_path / "w.safetensors", network)
    assert main(["predict", str(tmp_path / "w.safetensors"), *map(str, paths), "--format=json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    found = [[(top["label"], top["probability"]) for top in row["top"]] for row in rows]
    assert found == classify(network, paths)


def test_weights_are_compiled_once_for_one_image_and_once_for_several_and_forgotten_with_them(paths):
    network = draw()
    with mock.patch.object(inference, "compile_forward", wraps=inference.compile_forward) as compile_forward:
        for images in (paths[0], paths[1], paths[:2], paths[:1], paths):
            classify(network, images)
    assert [call.args[1] for call in compile_forward.call_args_list] == [1, BATCH_SIZE]
    alive = weakref.ref(network)
    compile_forward.reset_mock()
    del network
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("nowhere.jpg", "nowhere.jpg: cannot be read as an image"),
        (3, "images: a value of type int is not allowed; it must be a path, a PIL image, an array, or several"),
        ([None], r"images\[0\]: a value of type NoneType is not allowed"),
        (
            np.zeros((8, 8, 3)),
            r"an array float64 \[8, 8, 3\] is not allowed; it must be uint8 \[H, W\] or \[H, W, C\]",
        ),
        (np.zeros((2, 8, 8, 3), np.uint8), r"\[2, 8, 8, 3\] is not allowed"),
        (np.zeros((0, 8, 3), np.uint8), r"\[0, 8, 3\] is not allowed"),
        ([Image.new("RGB", (8, 8)), Image.new("F", (8, 8))], r"images\[1\]: its pixels have more than 16 bits, mode F"),
    ],
    ids=range(7),
)
def test_what_is_no_image_is_one_line(network, images, message):
    with pytest.raises(UserError, match=message) as caught:
        classify(network, images)
    assert "\n" not in str(caught.value)


def test_a_wrong_path_and_a_wrong_top_wait_for_no_compiler(paths):
    with mock.patch.object(inference, "compile_forward") as compile_forward:
        with pytest.raises(UserError, match="nowhere"):
            classify(draw(), [paths[0], "nowhere.jpg"])
        with pytest.raises(UserError, match="top: 0 is not allowed; it must be at least 1"):
            classify(draw(), paths[0], top=0)
    assert not compile_forward.called


# ---- what `load` is told for it -------------------------------------------------------------------------------------


def test_labels_are_names_or_a_file_of_names(network, tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save(path, network)
    (tmp_path / "labels.txt").write_text("ant\nbee, bumblebee\n\ncat\n")
    assert weights.load(path).labels == NAMES
    for labels in (tmp_path / "labels.txt", str(tmp_path / "labels.txt"), ["ant", "bee, bumblebee", "cat"]):
        assert weights.load(path, labels=labels).labels == ("ant", "bee, bumblebee", "cat")
    with pytest.raises(UserError, match=r"w\.safetensors: labels: 2 names do not match 3 classes"):
        weights.load(path, labels=["ant", "bee"])
    with pytest.raises(UserError, match=r"labels: nowhere\.txt is not a file of class names"):
        weights.load(path, labels="nowhere.txt")


@pytest.mark.filterwarnings("error")
def test_a_guessed_preprocessing_is_said_until_somebody_has_said_which(tmp_path, paths):
    path = tmp_path / "squeezenet1_1.pth"
    path.write_bytes(torch_zip(state_dict(tiny_weights(geometry="torchvision"))))
    with pytest.warns(UserWarning, match=r"squeezenet1_1\.pth does not say which preprocessing .* torchvision"):
        classify(weights.load(path), paths[0])
    weights.save(tmp_path / "w.safetensors", weights.load(path))
    with pytest.warns(UserWarning, match="torchvision is assumed"):
        classify(weights.load(tmp_path / "w.safetensors"), paths[0])
    classify(weights.load(tmp_path / "w.safetensors", preprocessing="torchvision"), paths[0])
