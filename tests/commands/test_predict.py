"""predict, as a user types it, on a small network and images that the tests draw."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from small_network import CLASSES, SMALL, fails, reference, run

from squeezenet_jax import weights


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
