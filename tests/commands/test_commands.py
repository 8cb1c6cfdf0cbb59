"""convert, predict and evaluate, as a user types them, on small networks and images that the tests draw."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from squeezenet_jax import weights
from squeezenet_jax.__main__ import main
from squeezenet_jax.commands import evaluate
from squeezenet_jax.network import architecture, lowering
from squeezenet_jax.network.lowering import convolution
from squeezenet_jax.network.model import SqueezeNet
from squeezenet_jax.weights import inference
from squeezenet_jax.weights.bundle import Preprocessing, Weights, parameter_shapes, unflatten
from squeezenet_jax.weights.images import read_image
from squeezenet_jax.weights.inference import compile_forward

REPOSITORY = Path(__file__).parents[2]
CLASSES = ("cat", "dog", "emu", "fox", "gnu", "hen")
SMALL = Preprocessing("small", 40, "squash", 33, "RGB", 1 / 255, (0.5,), (0.25,))


@pytest.fixture(scope="module")
def network():
    return draw(width=0.125)


def draw(width, num_classes=6, norm="none"):
    arch = architecture.build("v1.1", geometry="caffe", width=width, bypass="simple", norm=norm)
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(arch, channels=3, num_classes=num_classes)
    flat = {name: (rng.normal(size=s) * np.prod(s[:-1]) ** -0.5).astype(np.float32) for name, s in shapes.items()}
    flat |= {name: np.abs(x) for name, x in flat.items() if name.endswith("/var")}
    flat["conv10/bias"] += 1  # above the ReLU, so that the classes differ
    return Weights(arch, unflatten(flat), num_classes, 3, SMALL, CLASSES[:num_classes])


@pytest.fixture
def path(network, tmp_path):
    weights.save(tmp_path / "w.safetensors", network)
    return str(tmp_path / "w.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """37 images in the classes' folders, as many as two batches of 16 and a part of one."""
    root = tmp_path_factory.mktemp("val")
    rng = np.random.default_rng(1)
    for name in CLASSES:
        (root / name).mkdir()
    for i in range(37):
        pixels = rng.integers(0, 256, (20 + i, 50 - i, 3), np.uint8)
        Image.fromarray(pixels).save(root / CLASSES[i % 5] / f"{i:02}.png")  # no image of "hen"
    return root


def program(network):
    model = SqueezeNet(network.arch, network.num_classes)
    return jax.jit(lambda image: model.apply({"params": network.params}, image))


def reference(network, paths):
    """Logits one image at a time, without `weights.inference`."""
    apply = program(network)
    images = (read_image(path, network.preprocessing)[None] for path in paths)
    return np.concatenate([apply(image) for image in images])


def run(*argv):
    return main([str(arg) for arg in argv])


def fails(capsys, *argv):
    """The one line of a command that ends with 2."""
    assert run(*argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


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


def test_predict_logits_are_the_models(network, path, folder, tmp_path):
    images = sorted(folder.glob("*/*.png"))
    assert run("predict", path, *images, "--logits", tmp_path / "out.bin") == 0
    with np.load(tmp_path / "out.bin") as result:
        assert result["logits"].shape == (37, len(CLASSES)) and result["logits"].dtype == np.float32
        assert result["image"].tolist() == [str(image) for image in images]
        np.testing.assert_allclose(result["logits"], reference(network, images), rtol=1e-4, atol=1e-5)


def test_predict_finds_out_before_its_work_where_logits_cannot_be_put(path, folder, tmp_path, capsys):
    image, other = sorted(folder.glob("*/*.png"))[:2]
    content = image.read_bytes()
    assert "is there and is no .npz" in fails(capsys, "predict", path, "--logits", image, other)
    assert image.read_bytes() == content
    assert "there is no folder" in fails(
        capsys, "predict", "no weights", "--logits", tmp_path / "none" / "l.npz", other
    )


def test_predict_turns_photographs_and_evaluate_does_as_in_training(network, folder, tmp_path, capsys):
    pixels = np.asarray(Image.open(next(folder.glob("cat/*.png"))))
    exif = Image.Exif()
    exif[0x0112] = 6
    held, upright, as_stored = (tmp_path / f"{name}.png" for name in ("held", "upright", "as_stored"))
    Image.fromarray(pixels).save(held, exif=exif)
    Image.fromarray(pixels).save(as_stored)
    Image.fromarray(np.rot90(pixels, -1)).save(upright)
    for trained_so in (False, True):
        preprocessing = dataclasses.replace(SMALL, exif_orientation=trained_so)
        weights.save(tmp_path / "w.safetensors", dataclasses.replace(network, preprocessing=preprocessing))
        assert run("predict", tmp_path / "w.safetensors", held, upright, "--logits", tmp_path / "out.npz") == 0
        with np.load(tmp_path / "out.npz") as result:
            logits_NK = result["logits"]
        np.testing.assert_allclose(logits_NK[0], logits_NK[1], rtol=1e-4, atol=1e-5)
        capsys.readouterr()
        losses = []
        for name, image in (("held", held), ("same", upright if trained_so else as_stored)):
            for label in CLASSES:
                (tmp_path / f"{name} {trained_so}" / label).mkdir(parents=True)
            shutil.copy(image, tmp_path / f"{name} {trained_so}" / "cat" / "1.png")
            place = f"folder:{tmp_path / f'{name} {trained_so}'}"
            assert run("evaluate", tmp_path / "w.safetensors", place, "--format", "json") == 0
            losses.append(json.loads(capsys.readouterr().out)["loss"])
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_predict_json(network, path, folder, capsys):
    image = next(folder.glob("cat/*.png"))
    assert run("predict", path, image, "--format", "json", "--top", 3) == 0
    (row,) = json.loads(capsys.readouterr().out)
    logits_K = reference(network, [image])[0]
    best = np.argsort(-logits_K)[:3]
    assert row["image"] == str(image)
    assert [top["class"] for top in row["top"]] == best.tolist()
    assert [top["label"] for top in row["top"]] == [CLASSES[k] for k in best]
    softmax = np.exp(logits_K) / np.exp(logits_K).sum()
    np.testing.assert_allclose([top["probability"] for top in row["top"]], softmax[best], rtol=1e-4)


def test_predict_table_and_labels(path, folder, tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("\n".join(f"name {i}" for i in range(len(CLASSES))))
    image = next(folder.glob("cat/*.png"))
    assert run("predict", path, image, "--labels", tmp_path / "labels.txt", "--top", 50) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(image) and len(lines) == 1 + len(CLASSES)
    assert all("%  name " in line for line in lines[1:])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_labels_are_read_in_whatever_way_an_editor_wrote_them(path, folder, tmp_path, capsys, encoding, end):
    # Python calls these unprintable: a joiner, a soft hyphen, an unbreakable and a wide space, a mark of direction.
    names = ["Name 0 é", "क्\u200dष", "soft\xadhyphen", "guinea\xa0pig", "柴\u3000犬", "חתול\u200f (!)"]
    (tmp_path / "labels.txt").write_bytes((end.join(names) + end).encode(encoding))
    image = next(folder.glob("cat/*.png"))
    assert run("predict", path, image, "--labels", tmp_path / "labels.txt", "--top", 6) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert sorted(line.partition("%  ")[2] for line in lines) == sorted(names)


def test_labels_that_contradict_the_weights_are_refused(path, folder, tmp_path, capsys):
    image = next(folder.glob("cat/*.png"))
    (tmp_path / "labels.txt").write_text("\n".join(CLASSES[::-1]))
    for command in (["predict", path, image], ["convert", path, tmp_path / "b.safetensors"]):
        options = [*command, "--labels", tmp_path / "labels.txt"]
        assert '"hen" is class 0 there, and class 5 by the weights\' own names' in fails(capsys, *options)
        assert run(*options, "--classes-by-position") == 0
        capsys.readouterr()
    (tmp_path / "labels.txt").write_bytes("caf\xe9\n".encode("latin-1") * 6)
    assert "is not in UTF-8, UTF-16 or UTF-32" in fails(
        capsys, "predict", path, image, "--labels", tmp_path / "labels.txt"
    )


@pytest.mark.parametrize("count", [1, 20])
def test_predict_answers_for_the_others_and_names_the_bad_ones(network, path, folder, tmp_path, capsys, count):
    good = sorted(folder.glob("*/*.png"))[:count]
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    bad = [tmp_path / "pipe.jpg", tmp_path / "text.jpg", tmp_path / "none.jpg", tmp_path]
    images = [bad[0], *good, *bad[1:], good[0]]
    assert run("predict", path, *images, "--format", "json", "--logits", tmp_path / "out.npz") == 1
    out, err = capsys.readouterr()
    assert [row["image"] for row in json.loads(out)] == [str(image) for image in [*good, good[0]]]
    lines = err.splitlines()
    assert len(lines) == 4
    for image, line in zip(bad, lines, strict=True):
        assert line.startswith(f"left out: {image}: cannot be read as an image (")
    with np.load(tmp_path / "out.npz") as result:
        assert result["image"].tolist() == [str(image) for image in [*good, good[0]]]
        np.testing.assert_allclose(result["logits"], reference(network, [*good, good[0]]), rtol=1e-4, atol=1e-5)
    assert "none of the 4 images can be read; the first: " in fails(capsys, "predict", path, *bad)


@pytest.mark.long
def test_names_that_are_not_utf8_end_in_no_traceback(path, folder, tmp_path):
    """In processes of their own: with an output that can express less, and one that refuses surrogates."""
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    odd = data / "cat" / os.fsdecode(b"caf\xe9 \xe2\x82\xac.png")
    shutil.copy(next(folder.glob("cat/*.png")), odd)
    (data / "cat" / os.fsdecode(b"\xff.jpg")).write_text("no image")
    for encoding in ("ascii:strict", "utf-8:strict"):
        for argv in (
            ["predict", path, odd, "--logits", tmp_path / "out.npz"],
            ["predict", path, odd, data / "cat" / os.fsdecode(b"\xff.jpg")],
            ["evaluate", path, f"folder:{data}"],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "squeezenet_jax", *argv],
                cwd=REPOSITORY,
                env=os.environ | {"PYTHONIOENCODING": encoding},
                capture_output=True,
                text=True,
            )
            assert "Traceback" not in done.stderr and done.returncode in (0, 1), done.stderr
            text = done.stdout + done.stderr
            assert ("caf\\xe9" in done.stdout) == (argv[0] == "predict")
            assert "\\xff.jpg" in text or len(argv) == 5


def test_a_home_folder_is_understood_in_every_path(path, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(folder, tmp_path / "val")
    (tmp_path / "labels.txt").write_text("\n".join(CLASSES))
    image = next((tmp_path / "val").glob("cat/*.png")).relative_to(tmp_path)
    options = ["--labels=~/labels.txt", "--logits=~/out.npz"]
    assert run("predict", "~/w.safetensors", f"~/{image}", *options) == 0
    assert (tmp_path / "out.npz").exists()
    assert run("evaluate", "~/w.safetensors", "folder:~/val") == 0
    (tmp_path / "source").mkdir()
    (tmp_path / "val").rename(tmp_path / "source/val")
    assert run("prepare", "~/source", "--out=~/prepared") == 0 and (tmp_path / "prepared/source/1.0.0").is_dir()
    assert run("convert", "~/w.safetensors", "~/copy.safetensors") == 0 and (tmp_path / "copy.safetensors").exists()


def test_evaluate_counts_every_image_once(network, path, folder, capsys):
    images = sorted(folder.glob("*/*.png"))
    logits_NK = reference(network, images)
    label = np.array([CLASSES.index(image.parent.name) for image in images])
    order = np.argsort(-logits_NK, kind="stable")
    expected = [float(np.mean([y in row[:k] for row, y in zip(order, label, strict=True)])) for k in (1, 5)]
    for batch_size in (1, 16, 100):
        assert run("evaluate", path, f"folder:{folder}", "--format", "json", "--batch-size", batch_size) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["count"] == 37 and result["unreadable"] == []
        np.testing.assert_allclose([result["top1"], result["top5"]], expected)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """1, 2, ... 6 images of the classes: whatever the network answers, its accuracy depends on which class is which."""
    root = tmp_path_factory.mktemp("uneven")
    rng = np.random.default_rng(1)
    for count, name in enumerate(CLASSES, start=1):
        (root / name).mkdir()
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(root / name / f"{number}.png")
    return root


def rename(folder, tmp_path, names):
    """The folders of CLASSES, called `names` instead."""
    root = tmp_path / "renamed"
    root.mkdir()
    for name, other in zip(CLASSES, names, strict=True):
        (root / other).symlink_to(folder / name)
    return root


@pytest.mark.parametrize("order", [(3, 1, 5, 0, 2, 4), (5, 4, 3, 2, 1, 0)])
def test_evaluate_goes_by_name_for_weights_whose_classes_are_not_in_alphabetical_order(
    network, path, uneven, tmp_path, capsys, order
):
    """The same network with its classes in another order, as a dataset that is not a folder may have them."""
    conv10 = {name: x[..., order] for name, x in network.params["conv10"].items()}
    params = {**network.params, "conv10": conv10}
    labels = tuple(CLASSES[number] for number in order)
    weights.save(tmp_path / "other.safetensors", dataclasses.replace(network, params=params, labels=labels))
    results = []
    for file in (path, tmp_path / "other.safetensors"):
        assert run("evaluate", file, f"folder:{uneven}", "--format", "json") == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1] and results[0]["classes_by"] == "name"
    by_position = ["evaluate", tmp_path / "other.safetensors", f"folder:{uneven}", "--classes-by-position"]
    assert run(*by_position, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["top1"] != results[0]["top1"]


def test_evaluate_takes_numbers_as_numbers(path, uneven, tmp_path, capsys):
    """Written so that they sort as strings in another order."""
    expected = evaluated(capsys, path, uneven)
    names = ["00", "1", "02", "3", "004", "5"]
    numbered = rename(uneven, tmp_path, names)
    assert sorted(names) != names
    assert evaluated(capsys, path, numbered) == expected | {"classes_by": "number"}


def evaluated(capsys, path, folder):
    assert run("evaluate", path, f"folder:{folder}", "--format", "json") == 0
    return json.loads(capsys.readouterr().out)


def test_evaluate_refuses_other_classes_and_says_where_it_goes_by_position(network, path, folder, tmp_path, capsys):
    others = rename(folder, tmp_path, ("apple", "banana", "cat", "dog", "elder", "fig"))
    assert "only the data have: apple, banana, elder" in fails(capsys, "evaluate", path, f"folder:{others}")
    assert run("evaluate", path, f"folder:{others}", "--classes-by-position") == 0
    assert "note" not in capsys.readouterr().err  # it was asked for
    weights.save(tmp_path / "nameless.safetensors", dataclasses.replace(network, labels=()))
    assert run("evaluate", tmp_path / "nameless.safetensors", f"folder:{others}") == 0
    assert "note: the weights have no class names: classes go by position" in capsys.readouterr().err
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train").symlink_to(folder)
    assert "train may be a split" in fails(capsys, "evaluate", path, f"folder:{tmp_path / 'data'}")


def test_evaluate_does_not_take_splits_for_the_classes_of_a_network_without_names(folder, tmp_path, capsys):
    pair = draw(width=0.125, num_classes=2)
    weights.save(tmp_path / "pair.safetensors", dataclasses.replace(pair, labels=()))
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        shutil.copy(next(folder.glob("cat/*.png")), tmp_path / "data" / split)
    command = ["evaluate", tmp_path / "pair.safetensors", f"folder:{tmp_path / 'data'}"]
    assert "seem to be splits, not classes" in fails(capsys, *command)
    assert run(*command, "--classes-by-position") == 0


def test_images_are_read_in_order_and_not_far_ahead():
    begun = []
    with evaluate._in_threads(lambda number: begun.append(number) or number, 40, ahead=5) as readings:
        for number, reading in enumerate(readings):
            assert reading() == number
            assert len(begun) <= number + 6
    assert sorted(begun) == list(range(40))


def test_what_is_not_read_yet_is_not_waited_for():
    go_on = threading.Event()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), evaluate._in_threads(lambda number: go_on.wait(60), 40, ahead=5) as readings:
        threading.Timer(0.1, signal.pthread_kill, [threading.get_ident(), signal.SIGINT]).start()
        next(readings)()
    assert time.monotonic() - began < 30
    go_on.set()


def test_evaluate_names_what_it_cannot_read(path, folder, capsys, tmp_path):
    data = tmp_path / "data"
    for name in (*CLASSES, ".cache"):
        (data / name).mkdir(parents=True)
    (data / "dog" / "good.png").write_bytes(next(folder.glob("*/*.png")).read_bytes())
    (data / "dog" / ".hidden").write_text("not counted")
    (data / "dog" / "bad.jpg").write_text("no image")
    (data / "dog" / "worse.jpg").write_text("no image")
    assert run("evaluate", path, f"folder:{data}", "--format", "json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["count"] == 1
    unreadable = [message.partition(":")[0] for message in result["unreadable"]]  # one of them behind the last image
    assert unreadable == [str(data / "dog" / name) for name in ("bad.jpg", "worse.jpg")]
    assert run("evaluate", path, f"folder:{data}") == 0
    out, err = capsys.readouterr()
    assert "of 1 images" in out and "left out: " in err and "bad.jpg" in err
    assert "left out: .cache: hidden" in err and "left out: dog/.hidden: hidden" in err and "in all: 4" in err
    (data / "dog" / "good.png").unlink()
    assert "none of the 2 files" in fails(capsys, "evaluate", path, f"folder:{data}")


def test_convert_describes_and_keeps(network, path, tmp_path, capsys):
    assert run("convert", path, tmp_path / "b.safetensors") == 0
    out = capsys.readouterr().out
    assert "6 classes" in out and "bypass around fire 3, 5, 7, 9" in out and "preprocessing small" in out
    again = weights.load(tmp_path / "b.safetensors")
    assert (again.arch, again.labels, again.preprocessing) == (network.arch, CLASSES, SMALL)
    assert again.provenance == network.provenance


def test_an_assumed_preprocessing_is_said(network, folder, tmp_path, capsys):
    """A file with torchvision's names and no metadata, which is no statement about preprocessing."""
    plain = dataclasses.replace(network, arch=architecture.with_bypass(network.arch, "none"))
    weights.save(tmp_path / "own.safetensors", plain, "torchvision")
    tensors = safetensors.numpy.load_file(tmp_path / "own.safetensors")
    safetensors.numpy.save_file(tensors, tmp_path / "foreign.safetensors")
    image = next(folder.glob("cat/*.png"))
    for name, options, is_assumed in (
        ("own.safetensors", [], False),
        ("foreign.safetensors", [], True),
        ("foreign.safetensors", ["--preprocessing", "caffe"], False),
        ("converted.safetensors", [], True),
    ):
        assert run("predict", tmp_path / name, image, *options) == 0
        assert ("torchvision is assumed" in capsys.readouterr().err) == is_assumed
        if name == "foreign.safetensors" and is_assumed:
            assert run("convert", tmp_path / name, tmp_path / "converted.safetensors") == 0
            capsys.readouterr()


def test_convert_adds_labels(path, tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("\n".join("abcdef") + "\n")
    assert run("convert", path, tmp_path / "b.safetensors", "--labels", tmp_path / "labels.txt") == 0
    assert weights.load(tmp_path / "b.safetensors").labels == tuple("abcdef")
    (tmp_path / "labels.txt").write_text("a\nb\n")
    capsys.readouterr()
    assert "2 names do not match 6" in fails(
        capsys, "convert", path, tmp_path / "b.safetensors", "--labels", tmp_path / "labels.txt"
    )


def test_wrong_commands_end_in_one_line(path, folder, tmp_path, capsys):
    image = next(folder.glob("cat/*.png"))
    (tmp_path / "empty").mkdir()
    for argv, message in (
        (["convert", path], "the following arguments are required: DST"),
        (["convert", path, tmp_path / "b.pth"], "written as .safetensors"),
        (["convert", path, tmp_path / "b.safetensors", "--layout", "torchvision"], "no bypass"),
        (["convert", tmp_path / "none.net", tmp_path / "b.safetensors"], "no such file"),
        (["convert", path, tmp_path / "b.safetensors", "--labels", tmp_path / "none"], "--labels"),
        (["predict", path, tmp_path / "none.jpg"], "cannot be read as an image"),
        (["predict", path, image, "--top", "0"], "--top"),
        (["predict", path, image, "--logits", tmp_path / "no" / "out.npz"], "there is no folder"),
        (["predict", path, image, "--bypass", "none"], "records its own architecture"),
        (["predict", image, image], "no known format"),
        (["evaluate", path, "digits"], "the network has 6 classes"),
        (["evaluate", path], "DATA: is missing; only a run's directory"),
        (["evaluate", path, "digts"], 'did you mean "digits"'),
        (["evaluate", path, "folder"], "must be folder:DIR"),
        (["evaluate", path, f"folder:{folder}", "--split", "test"], "--split: is for datasets"),
        (["evaluate", path, f"folder:{tmp_path}/none"], "cannot be read"),
        (["evaluate", path, f"folder:{tmp_path / 'empty'}"], "0 class folders; the network has 6"),
        (["evaluate", path, f"folder:{folder}", "--batch-size", "0"], "--batch-size"),
    ):
        assert message in fails(capsys, *argv)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("JAX_PLATFORMS", "cuda", "JAX_PLATFORMS: 'cuda' cannot be had here"),
        ("JAX_PLATFORM_NAME", "gpu", "JAX_PLATFORM_NAME: 'gpu' cannot be had here (Unknown backend: 'gpu'"),
        ("JAX_NUM_CPU_DEVICES", "two", 'environment: Invalid value "two" for JAX flag jax_num_cpu_devices'),
        ("JAX_ENABLE_X64", "maybe", "environment: invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'"),
    ],
)
def test_devices_that_are_not_there_are_one_line(path, folder, variable, value, message):
    environment = {name: x for name, x in os.environ.items() if not name.startswith("JAX_")} | {variable: value}
    command = [sys.executable, "-m", "squeezenet_jax", "predict", str(path), str(next(folder.glob("cat/*.png")))]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert message in result.stderr


def test_ctrl_c_ends_a_command_in_one_line(network, folder, tmp_path):
    nameless = tmp_path / "nameless.safetensors"
    weights.save(nameless, dataclasses.replace(network, labels=()))
    for number in range(300):
        shutil.copytree(folder / "cat", tmp_path / "many" / "cat" / str(number))
    for name in CLASSES[1:]:
        (tmp_path / "many" / name).mkdir()
    command = [sys.executable, "-m", "squeezenet_jax", "evaluate", str(nameless), f"folder:{tmp_path / 'many'}"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline().startswith("note: ")  # from now on it compiles and reads
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
