"""The exported published weights on real photographs, against logits of an independent PyTorch forward pass.

The files are in `../shared/data` where there is one; a user's checkout has none, and these tests are skipped.
"""

import tarfile
from pathlib import Path

import numpy as np
import pytest

from squeezenet_jax import weights
from squeezenet_jax.export import FORMATS, export, from_weights, load_format
from squeezenet_jax.weights.images import read_image

DATA = Path(__file__).parents[3] / "shared" / "data"
FILES = {
    "v1.0": ("squeezenet_v1.0_deep_compression.net", None),
    "v1.1": ("squeezenet_v1.1_torchvision_layout_fp16.safetensors", "caffe"),
}
PHOTOGRAPHS = 20
NEEDS = {".onnx": ("onnx", "onnxruntime"), ".stablehlo": ("flatbuffers",), ".tflite": ("litert_converter",)}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not DATA.is_dir(), reason="there is no ../shared/data with published weights and golden logits"),
]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("version", FILES)
def test_exported_published_weights_give_the_golden_logits(version, suffix, tmp_path):
    for package in NEEDS[suffix]:
        pytest.importorskip(package, reason=f"{package} is not installed (requirements-export.txt)")
    name, preprocessing = FILES[version]
    loaded = weights.load(DATA / name, preprocessing=preprocessing)
    out = tmp_path / f"net{suffix}"
    export(from_weights(loaded), out)
    with np.load(DATA / f"golden_logits_{version}.npz") as golden:
        names, expected = golden["image"][:PHOTOGRAPHS], golden["logits"][:PHOTOGRAPHS]
    with tarfile.open(DATA / "imagenet_sample_100.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    paths = {path.name: path for path in tmp_path.rglob("*.JPEG")}
    images = np.stack([read_image(paths[Path(str(name)).name], loaded.preprocessing) for name in names])
    logits = load_format(suffix).load(out)(images.astype(np.float32))
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
    np.testing.assert_array_equal(logits.argmax(axis=1), expected.argmax(axis=1))
