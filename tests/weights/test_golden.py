"""The published networks compute here what an independent PyTorch forward pass computed: 100 photographs each.

Needs the files that are kept beside the repository, in ../shared/data; skipped without them.
"""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from weight_files import assert_same_params, caffemodel, state_dict, torch_legacy, torch_zip

from squeezenet_jax import weights
from squeezenet_jax.__main__ import main
from squeezenet_jax.training import objective
from squeezenet_jax.weights import inference

DATA = Path(__file__).parents[3] / "shared" / "data"
SOURCES = {
    "v1.0": "squeezenet_v1.0_deep_compression.net",
    "v1.1": "squeezenet_v1.1_torchvision_layout_fp16.safetensors",
}
FILES = [*SOURCES.values(), "imagenet_sample_100.tar", "golden_logits_v1.0.npz", "golden_logits_v1.1.npz"]
HITS = {"v1.0": (64, 83), "v1.1": (68, 87)}  # top-1 and top-5 of the same 100 in the independent forward pass
PARAMS = {"v1.0": 1_248_424, "v1.1": 1_235_496}

pytestmark = pytest.mark.skipif(
    not all((DATA / name).exists() for name in FILES),
    reason="needs ../shared/data with the published weights, photographs and golden logits",
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    with tarfile.open(DATA / "imagenet_sample_100.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder / "val"


@pytest.mark.parametrize(
    ("engine", "many"),
    [("xla", 100), ("xla", 101), ("onnxruntime", 101)],  # 100: they are many, and computed in the forms for inference
)
@pytest.mark.parametrize("version", SOURCES)
@pytest.mark.long
def test_logits_and_accuracy(version, engine, many, photographs, tmp_path, monkeypatch):
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements-export.txt)")
    monkeypatch.setattr(inference, "MANY_IMAGES", many)
    converted, out = tmp_path / "w.safetensors", tmp_path / "logits.npz"
    assert main(["convert", str(DATA / SOURCES[version]), str(converted), "--preprocessing", "caffe"]) == 0
    with np.load(DATA / f"golden_logits_{version}.npz") as golden:
        names, label, expected_NK = golden["image"], golden["label"], golden["logits"]
    path = {file.name: str(file) for file in photographs.glob("*/*")}
    images = [path[name] for name in names]
    assert main(["predict", str(converted), *images, "--logits", str(out), "--engine", engine]) == 0
    with np.load(out) as result:
        logits_NK = result["logits"]
    difference = np.abs(logits_NK - expected_NK).max(axis=1) / np.abs(expected_NK).max(axis=1)
    assert difference.max() < 1e-5
    rank = np.asarray(objective.label_rank(logits_NK, label))
    assert ((rank < 1).sum(), (rank < 5).sum()) == HITS[version]


@pytest.mark.slow
@pytest.mark.parametrize("version", SOURCES)
def test_evaluate_says_the_same(version, photographs, capsys):
    command = ["evaluate", str(DATA / SOURCES[version]), f"folder:{photographs}", "--preprocessing", "caffe"]
    assert main(command) == 0
    top1, top5 = HITS[version]
    assert capsys.readouterr().out == f"top-1 {top1:.2f} %, top-5 {top5:.2f} % of 100 images\n"


@pytest.mark.parametrize("version", SOURCES)
def test_published_parameters_survive_every_format(version, tmp_path):
    """The real parameters, through the encoders of the tests and every reader."""
    first = weights.load(DATA / SOURCES[version], preprocessing="caffe")
    assert sum(x.size for x in weights.bundle.flatten(first.params).values()) == PARAMS[version]
    contents = {
        "new.caffemodel": caffemodel(first.params),
        "old.caffemodel": caffemodel(first.params, old=True),
        "zip.pth": torch_zip(state_dict(first)),
        "legacy.pth": torch_legacy(state_dict(first)),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    weights.save(tmp_path / "own.safetensors", first)
    weights.save(tmp_path / "torchvision.safetensors", first, "torchvision")
    for path in tmp_path.iterdir():
        again = weights.load(path, preprocessing="caffe")
        assert_same_params(again.params, first.params)
        assert (again.arch, again.preprocessing) == (first.arch, first.preprocessing)


def test_the_pruned_network_has_the_papers_zeros():
    """415,921 of 1,248,424 are non-zero, biases included (the decoded file; the paper's Table 1 prints 421,098)."""
    flat = weights.bundle.flatten(weights.load(DATA / SOURCES["v1.0"]).params)
    assert sum(int(np.count_nonzero(x)) for name, x in flat.items() if name.endswith("kernel")) == 415_921
