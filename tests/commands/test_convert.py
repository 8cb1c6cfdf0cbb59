"""convert, as a user types it, and the preprocessing that it assumes."""

import dataclasses

import safetensors.numpy
from small_network import CLASSES, SMALL, fails, run

from squeezenet_jax import weights
from squeezenet_jax.network import architecture


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
