"""evaluate, as a user types it, on a small network and images that the tests draw."""

import dataclasses
import json
import shutil
import signal
import threading
import time

import numpy as np
import pytest
from PIL import Image
from small_network import CLASSES, draw, fails, reference, run

from squeezenet_jax import weights
from squeezenet_jax.commands import evaluate


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
