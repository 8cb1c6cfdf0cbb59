"""`evaluate` on what a run was evaluated on: the same answer as training's own evaluation."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from trained_run import trained

from squeezenet_jax.__main__ import main
from squeezenet_jax.data import catalog, fingerprint


@pytest.fixture(scope="module")
def on_digits(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize("data", [[], ["digits", "--split", "test[:50]"]])
def test_a_run_is_evaluated_again_to_the_same_numbers(on_digits, data, capsys):
    run, expected = on_digits
    assert main(["evaluate", str(run), *data, "--format", "json", "--batch-size", "7"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["top1"], result["top5"], result["count"]) == (expected["top1"], expected["top5"], 50)
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_a_run_is_not_evaluated_on_other_images_than_it_recorded(on_digits, tmp_path, capsys):
    run = shutil.copytree(on_digits[0], tmp_path / "run")
    description = json.loads((run / "run.json").read_text())
    recorded = description["inputs"]["data"]["test"]
    assert recorded.startswith("364 images in 10 classes, ")
    description["inputs"]["data"]["test"] = "365 images in 10 classes, 0123456789abcdef"
    (run / "run.json").write_text(json.dumps(description))
    assert main(["evaluate", str(run)]) == 2
    assert f"test was 365 images in 10 classes, 0123456789abcdef, now it is {recorded}" in capsys.readouterr().err
    description["inputs"]["data"]["test"] = "364 images in 10 classes, 0123456789abcdef"
    (run / "run.json").write_text(json.dumps(description))
    assert main(["evaluate", str(run)]) == 0
    assert "when the run began, now it is" in capsys.readouterr().err
    for named in (["digits"], ["--split", "train[:40]"]):  # as asked for, and a split that is as it was
        assert main(["evaluate", str(run), *named]) == 0


@pytest.mark.parametrize(
    ("named", "seen"),
    [([], 0), (["digits"], 0), (["--split", "train[90:110]"], 6), (["digits", "--split", "train[:40]"], 40)],
)
def test_images_that_the_run_was_trained_on_are_said_to_be(on_digits, named, seen, capsys):
    assert main(["evaluate", str(on_digits[0]), *named]) == 0
    said = f"note: the run was trained on {seen} of these images: its accuracy on them says nothing about others\n"
    assert capsys.readouterr().err == (said if seen else "")


def test_folders_and_runs_that_it_began_with_count_too(tmp_path, capsys):
    folder = tmp_path / "data"
    for split, number in (("train", 16), ("test", 4)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                Image.new("L", (9, 9), 20 * index).save(folder / split / name / f"{index}.png")
    common = {"data.name": "folder", "data.dir": str(folder), "data.num_classes": 0, "data.eval_split": "test"}
    common |= {"data.train_split": "train", "train.batch_size": 8, "data.workers": 0}
    first, _ = trained(tmp_path / "first", **common)
    changes = {"model.init_from": str(first), "data.train_split": "train[:16]"}
    second, _ = trained(tmp_path / "second", **common | changes)
    capsys.readouterr()
    for run, expected in (
        (first, [("the run", 32)]),
        (second, [("the run", 16), (f"{first}, with which it began,", 32)]),
    ):
        assert main(["evaluate", str(run), f"folder:{folder / 'train'}"]) == 0
        said = "of these images: its accuracy on them says nothing about others"
        assert capsys.readouterr().err == "".join(f"note: {who} was trained on {n} {said}\n" for who, n in expected)
        assert main(["evaluate", str(run), f"folder:{folder / 'test'}"]) == 0
        assert capsys.readouterr().err == ""


def test_a_split_counts_under_each_of_its_names(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (9, 9)).save(tmp_path / split / name / "0.png")
    place = str(tmp_path)
    inputs = {"data": {"validation": fingerprint.of_split("folder", place, "validation")}}
    run = {"settings": {"data": {"name": "folder", "train_split": "val"}}, "inputs": inputs}
    run["dataset"] = dataclasses.asdict(catalog.info("folder", place))
    for split, seen in (("val", 2), ("validation", 2), ("valid[:1]", 1), ("train", 0)):
        assert fingerprint.trained_on(run, "folder", place, split) == seen


def test_a_run_in_bfloat16_is_said_to_have_been_one(on_digits, tmp_path, capsys):
    run = shutil.copytree(on_digits[0], tmp_path / "run")
    description = json.loads((run / "run.json").read_text())
    description["settings"]["model"]["dtype"] = "bfloat16"
    (run / "run.json").write_text(json.dumps(description))
    assert main(["evaluate", str(run)]) == 0
    assert f"note: {run} was trained and evaluated in bfloat16, this is float32" in capsys.readouterr().err


def test_another_split_has_other_images(on_digits, capsys):
    run, _ = on_digits
    assert main(["evaluate", str(run), "digits", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 364


def test_top_5_of_three_classes_is_no_number(tmp_path, capsys):
    weights = Path(__file__).parents[1] / "old_files/2026_11_before_the_library/torchvision_layout.safetensors"
    for name in "abc":
        (tmp_path / name).mkdir()
        Image.new("RGB", (256, 256), (90, 40, 200)).save(tmp_path / name / "1.png")
    assert main(["evaluate", str(weights), f"folder:{tmp_path}"]) == 0
    assert "top-1 33.33 %, top-5 – of 3 images" in capsys.readouterr().out
