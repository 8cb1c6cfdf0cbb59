"""A whole small network, calibrated; a slow test has the published one."""

import copy
import dataclasses
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from squeezenet_jax import weights
from squeezenet_jax.compress import activations, calibrate, calibration, sensitivity
from squeezenet_jax.network import architecture
from squeezenet_jax.network.model import SqueezeNet
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import PREPROCESSINGS, Weights, flatten
from squeezenet_jax.weights.formats import compressed
from squeezenet_jax.weights.quantized import QuantizedLayer, codebooks, parameters

DATA = Path(__file__).parents[3] / "shared" / "data"
PUBLISHED = "squeezenet_v1.0_deep_compression.net"
CLASSES = 5


@pytest.fixture(scope="module")
def network():
    """v1.0 with an eighth of its filters, half of whose weights are removed, for images of 33 px."""
    arch = architecture.build("v1.0", geometry="caffe", width=0.125)
    preprocessing = dataclasses.replace(PREPROCESSINGS["caffe"], name="small", resize=40, crop=33)
    model = SqueezeNet(arch, CLASSES, kernel_init="he_uniform")
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 33, 33, 3), np.float32))["params"]
    rng = np.random.default_rng(0)
    flat = {
        name: np.where(rng.random(x.shape) < 0.5, x, 0).astype(np.float32) if name.endswith("kernel") else x + 0.1
        for name, x in ((name, np.asarray(x)) for name, x in flatten(params).items())
    }
    return Weights(arch, weights.bundle.unflatten(flat), CLASSES, 3, preprocessing)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(1)
    for number in range(6):
        picture = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize((50, 40))
        (folder / str(number % 2)).mkdir(exist_ok=True)
        picture.save(folder / str(number % 2) / f"{number}.png")
    return folder


def size_of(network, layers):
    """Bytes of the file."""
    return len(compressed.write(dataclasses.replace(network, params=parameters(layers), codebooks=codebooks(layers))))


def test_layers_one_by_one_are_the_network(network):
    image_NHWC = np.random.default_rng(2).normal(size=(3, 33, 33, 3)).astype(np.float32) * 50
    outputs = {"image": image_NHWC}
    flat = flatten(network.params)
    for layer in network.trace():
        outputs[layer.name] = activations.output(layer, [outputs[name] for name in layer.inputs], flat)
    expected = jax.jit(SqueezeNet(network.arch, CLASSES).apply)({"params": network.params}, image_NHWC)
    np.testing.assert_allclose(outputs["pool10"], expected, rtol=1e-4, atol=1e-4)


def test_windows_times_kernel_are_the_convolution(network):
    rng = np.random.default_rng(3)
    flat = flatten(network.params)
    for layer in network.trace():
        if layer.name in ("conv1", "fire2/expand3x3"):
            side = (layer.shape[0] - 1) * layer.stride + layer.kernel - sum(layer.borders)
            x_BHWC = rng.normal(size=(2, side, side, layer.in_channels)).astype(np.float32)
            kernel_DO = flat[f"{layer.name}/kernel"].reshape(-1, layer.shape[2])
            found = np.asarray(activations.windows(layer, x_BHWC)) @ kernel_DO + flat[f"{layer.name}/bias"]
            expected = activations.pre_activation(layer, [x_BHWC], flat)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_trace_is_that_of_the_fisher_information(network, monkeypatch):
    """Of conv10's bias and kernel, whose gradient is written down here for one image."""
    image_1HWC = np.random.default_rng(4).normal(size=(1, 33, 33, 3)).astype(np.float32) * 50
    layers, flat = network.trace(), flatten(network.params)
    monkeypatch.setattr(sensitivity, "DRAWS", 400)  # of signs, whose mean it is
    found = sensitivity.measure(layers, flat, image_1HWC)["conv10"]

    def logits(kernel):
        params = weights.bundle.unflatten({**flat, "conv10/kernel": kernel})
        return SqueezeNet(network.arch, CLASSES).apply({"params": params}, image_1HWC)[0]

    kernel = flat["conv10/kernel"]
    p_K = np.asarray(jax.nn.softmax(jax.jit(logits)(kernel)), np.float64)
    gradient_KW = np.asarray(jax.jit(jax.jacrev(logits))(kernel), np.float64).reshape(CLASSES, -1)
    exact = np.sum((np.diag(p_K) - np.outer(p_K, p_K)) * (gradient_KW @ gradient_KW.T))
    assert found.trace == pytest.approx(exact, rel=0.2)
    outputs = {layers[0].inputs[0]: image_1HWC}
    for layer in layers:
        outputs[layer.name] = y = activations.pre_activation(layer, [outputs[name] for name in layer.inputs], flat)
        if layer.name == "conv10":
            break
        outputs[layer.name] = activations.activation(layer, y)
    P, Q = y.shape[1:3]
    expected = np.sum(p_K * (1 - p_K) * (np.asarray(y) > 0), axis=-1) / (P * Q) ** 2
    np.testing.assert_allclose(found.position_NPQ, expected, rtol=0.15)


def test_the_budget_is_kept_and_the_same_call_gives_the_same_bits(network, photographs):
    lines = []
    dense = sum(x.size for x in flatten(network.params).values())
    layers = calibrate(network, photographs, num_bytes=dense // 2, report=lines.append)
    assert 0.97 * dense // 2 < size_of(network, layers) <= dense // 2
    assert lines[-1].startswith("pass ")
    flat = flatten(network.params)
    for layer in layers:
        assert isinstance(layer, QuantizedLayer)
        assert layer.values[0] == 0
        assert (np.diff(layer.values[1:]) > 0).all()
        assert (layer.kernel_HWIO[flat[f"{layer.name}/kernel"] == 0] == 0).all()
        assert layer.kernel_HWIO.shape == flat[f"{layer.name}/kernel"].shape
    again = calibrate(network, sorted(photographs.rglob("*.png")), num_bytes=dense // 2)
    for one, other in zip(layers, again, strict=True):
        assert one.kernel_HWIO.tobytes() == other.kernel_HWIO.tobytes()
        assert one.bias_O.tobytes() == other.bias_O.tobytes()


def test_wrong_input_is_one_line(network, photographs, tmp_path):
    for images, num_bytes, words in (
        ([], 10_000, "images: there are no images"),
        (tmp_path, 10_000, "holds no images"),
        (tmp_path / "missing", 10_000, "is no folder"),
        ([tmp_path / "missing.jpg"], 10_000, "cannot be read as an image"),
        (photographs, 100, "the smallest file of this network has"),
    ):
        with pytest.raises(UserError, match=words) as error:
            calibrate(network, images, num_bytes=num_bytes)
        assert "\n" not in str(error.value)


def test_a_network_with_a_norm_is_refused(network, photographs):
    class Normalised:
        norm = "batch"

    normalised = copy.copy(network)
    object.__setattr__(normalised, "arch", Normalised())
    with pytest.raises(UserError, match="norm: batch normalisation cannot be calibrated"):
        calibrate(normalised, photographs, num_bytes=10_000)


def test_what_is_no_image_in_a_folder_is_left_out_and_of_many_images_some_are_taken_from_all_over_it(
    network, photographs, tmp_path, monkeypatch
):
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "a.png").write_bytes(next(photographs.rglob("*.png")).read_bytes())
    lines = []
    assert calibration._read(tmp_path, network, lines.append).shape == (1, 33, 33, 3)
    assert [line.startswith("left out:") for line in lines] == [True]
    all_NHWC = calibration._read(photographs, network, lines.append)
    monkeypatch.setattr(calibration, "MAX_IMAGES", 4)
    np.testing.assert_array_equal(calibration._read(photographs, network, lines.append), all_NHWC[::2])


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / PUBLISHED).exists(), reason="needs ../shared/data with the published weights")
@pytest.mark.long
def test_half_of_the_published_file_predicts_photographs_that_were_not_used_as_before(tmp_path, monkeypatch):
    """Calibrated on 25 photographs, judged on 75 others, by the network that it came from: 320,000 of 675,763 bytes."""
    with tarfile.open(DATA / "imagenet_sample_100.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    paths = sorted((tmp_path / "val").glob("*/*"))
    published = weights.load(DATA / PUBLISHED)
    used = paths[::4]
    monkeypatch.setattr(calibration, "CLOSE", 0.96)  # fewer passes over the network, each of which takes a while
    layers = calibrate(published, used, num_bytes=320_000)
    assert size_of(published, layers) <= 320_000
    flat = {name: x for q in layers for name, x in ((f"{q.name}/kernel", q.kernel_HWIO), (f"{q.name}/bias", q.bias_O))}
    image_NHWC = np.stack(
        [weights.images.read_image(path, published.preprocessing) for path in paths if path not in used]
    )
    apply = jax.jit(SqueezeNet(published.arch, 1000).apply)
    before_NK, after_NK = (
        np.asarray(jax.nn.log_softmax(apply({"params": params}, image_NHWC)), np.float64)
        for params in (published.params, weights.bundle.unflatten(flat))
    )
    assert np.mean(before_NK.argmax(1) == after_NK.argmax(1)) >= 0.75
    assert np.mean(np.sum(np.exp(before_NK) * (before_NK - after_NK), axis=1)) < 0.08
