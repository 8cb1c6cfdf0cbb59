"""The compressed file: what goes in comes out to the bit, in another decoder too, and damage is told in one line."""

import dataclasses
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import scalar_decoder
from test_golden import DATA, SOURCES
from weight_files import assert_same_params, deep_compression, refused, sparse, tiny_weights

from squeezenet_jax import weights
from squeezenet_jax.network import architecture
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import PREPROCESSINGS, Weights, flatten, parameter_shapes, unflatten
from squeezenet_jax.weights.formats import compressed, infer
from squeezenet_jax.weights.formats import deep_compression as net
from squeezenet_jax.weights.formats.sqz.layers import MAX_VALUES
from squeezenet_jax.weights.quantized import from_weights

CLASSES = ("cat", "dög", "emu")


def with_values(first, draw):
    """The same network with other kernels: `draw(shape, number of the layer)`."""
    flat = dict(flatten(first.params))
    for number, name in enumerate(name for name in flat if name.endswith("/kernel")):
        flat[name] = draw(flat[name].shape, number).astype(np.float32)
    return dataclasses.replace(first, params=unflatten(flat))


def varied():
    """Layers with no weight, one, a few that are multiples of a step, many, and full precision; biases of all kinds."""
    rng = np.random.default_rng(0)

    def draw(shape, number):
        kept = rng.random(shape) < rng.random()
        kinds = (
            np.zeros(shape),
            np.full(shape, -0.3),
            rng.integers(-3, 4, shape) * np.float32(0.0123),
            rng.integers(-400, 400, shape) / 7,
            rng.normal(size=shape) * 10.0 ** rng.integers(-30, 30, shape),
        )
        return kept * kinds[number % len(kinds)] + 0.0  # a weight of -0 would come back as 0

    first = tiny_weights(bypass="complex", labels=CLASSES, provenance={"source": "x"})
    flat = flatten(with_values(first, draw).params)
    flat["fire2/squeeze1x1/bias"][:] = np.float32(1e-40)
    flat["fire3/squeeze1x1/bias"][:] = 0
    flat["fire4/squeeze1x1/bias"][:] = -np.float32(1 / 3)
    return dataclasses.replace(first, params=unflatten(flat))


def assert_same_bits(a, b):
    a, b = flatten(a), flatten(b)
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes(), name


def repaired(content):
    """With a checksum that fits."""
    return content[:-4] + struct.pack("<I", zlib.crc32(content[:-4]))


def test_everything_comes_back_to_the_bit_whatever_the_file_is_called(tmp_path):
    first = varied()
    weights.save(tmp_path / "w.sqz", first)
    (tmp_path / "w.bin").write_bytes((tmp_path / "w.sqz").read_bytes())
    for name in ("w.sqz", "w.bin"):
        again = weights.load(tmp_path / name)
        assert_same_bits(again.params, first.params)
        assert dataclasses.replace(again, params=first.params).__dict__ == first.__dict__
    refused(tmp_path / "w.sqz", "records its own architecture", bypass="simple")
    refused(tmp_path / "w.sqz", "holds one network only", state_dict="model")


def test_the_order_of_the_parameters_does_not_matter(tmp_path):
    """A run's are in none: a file whose layers had theirs was not readable."""
    first = with_values(tiny_weights(), lambda shape, number: np.random.default_rng(number).integers(-9, 10, shape))
    flat = list(flatten(first.params).items())
    for number in range(3):
        np.random.default_rng(number).shuffle(flat)
        again = dataclasses.replace(first, params=unflatten(dict(flat)))
        weights.save(tmp_path / "w.sqz", again)
        assert_same_params(weights.load(tmp_path / "w.sqz").params, first.params)
        for encode in (compressed.encode, net.encode):
            assert encode(from_weights(again, 255)) == encode(from_weights(first, 255))


def test_a_file_that_does_not_come_back_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "encode", lambda layers, encode=compressed.encode: encode(layers[::-1]))
    with pytest.raises(RuntimeError, match="does not read back"):
        weights.save(tmp_path / "w.sqz", varied())
    assert not (tmp_path / "w.sqz").exists()


def test_a_decoder_written_from_the_description_gives_the_same_bits():
    first, shuffled = varied(), {}
    for layer in from_weights(first, MAX_VALUES):
        shuffled[layer.name] = np.random.default_rng(1).permutation(layer.values[1:])
    first = dataclasses.replace(first, codebooks=shuffled)
    layers = scalar_decoder.decode(compressed.write(first))
    flat = flatten(first.params)
    assert [f"{name}/kernel" for name in layers] == [name for name in flat if name.endswith("/kernel")]
    for name, (kernel, bias) in layers.items():
        assert np.array(kernel, np.float32).tobytes() == flat[f"{name}/kernel"].transpose(3, 2, 0, 1).tobytes(), name
        assert np.array(bias, np.float32).tobytes() == flat[f"{name}/bias"].tobytes()


def test_sizes_are_those_of_the_file_and_near_the_entropy():
    rng = np.random.default_rng(0)
    arch = architecture.build("v1.1", geometry="caffe", width=0.25)
    shapes = parameter_shapes(arch, channels=3, num_classes=100)
    flat = {
        name: (np.rint(rng.laplace(size=s)) * np.float32(0.01)).astype(np.float32) * (rng.random(s) < 0.5)
        for name, s in shapes.items()
    }
    first = Weights(arch, unflatten(flat), 100, 3, PREPROCESSINGS["caffe"])
    layers = from_weights(first, MAX_VALUES)
    size = compressed.encoded_size(layers)
    assert compressed.overhead(first) + size == len(compressed.write(first))
    assert 0 <= size - sum(compressed.sizes(layers)) < 500
    kernel = np.concatenate([x.ravel() for name, x in flat.items() if name.endswith("kernel")])
    share = np.unique(kernel, return_counts=True)[1] / kernel.size
    bits = -(share * np.log2(share)).sum()
    assert size < 1.03 * kernel.size * bits / 8 + sum(4 * x.size for x in flat.values() if x.ndim == 1)


def test_a_table_of_multiples_of_a_step_takes_few_bytes():
    first = tiny_weights(version="v1.0")
    rng = np.random.default_rng(0)
    integers = rng.integers(-7, 8, 10_000)
    steps = [with_values(first, lambda s, _, x=x: np.resize(integers, s) * np.float32(x)) for x in (0.0123, 0.5)]
    floats = with_values(first, lambda s, _: np.resize(np.sort(rng.normal(size=15))[integers], s))
    sizes = [compressed.encoded_size(from_weights(x, MAX_VALUES)) for x in (*steps, floats)]
    assert abs(sizes[0] - sizes[1]) < 20 and sizes[2] - sizes[0] > 26 * 14 * 2


def test_what_has_no_room_in_a_file_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    dense = with_values(tiny_weights(), lambda shape, _: rng.normal(size=shape))
    for path, message in (
        ("w.net", "v1.0"),
        ("w.txt", "weights are written as .safetensors, .sqz, .net"),
    ):
        with pytest.raises(UserError, match=message):
            weights.save(tmp_path / path, dense)
    with pytest.raises(UserError, match=r"layout torchvision is one of \.safetensors only"):
        weights.save(tmp_path / "w.sqz", dense, "torchvision")
    with pytest.raises(UserError, match=r"fire6/expand3x3: has 324 different weights, and at most 255 .*--bits"):
        from_weights(dense, 255)
    assert not list(tmp_path.iterdir())


def test_damage_is_told_in_one_line(write):
    content = compressed.write(tiny_weights(provenance={}))
    deflated, inflated = struct.unpack_from("<II", content, 12)

    def with_text(change, size=None):
        text = zlib.compress(change(zlib.decompress(content[24 : 24 + deflated])))
        length = len(zlib.decompress(text)) if size is None else size
        head = content[:12] + struct.pack("<II", len(text), length) + content[20:24]
        return repaired(head + text + content[24 + deflated :])

    for changed, message in (
        (content[:20], "truncated"),
        (content[:-5] + content[-4:], "not as many as its header says"),
        (content[:100] + bytes([content[100] ^ 1]) + content[101:], "checksum"),
        (repaired(content[:8] + b"\2" + content[9:]), "version 2 is not 1"),
        (repaired(content[:16] + b"\xff" * 4 + content[20:]), "claims 4294967295 bytes"),
        (with_text(lambda text: text, inflated - 1), "not as long"),
        (with_text(lambda text: text + bytes(1 << 20)), "not valid JSON"),
        (with_text(lambda text: text.replace(b"conv1 3", b"conv1 5")), "list of layers"),
        (repaired(content[:-6] + bytes(2) + content[-4:]), "damaged"),
    ):
        refused(write("w.sqz", changed), message)


def test_a_short_file_cannot_claim_many_weights(write, monkeypatch):
    content = compressed.write(tiny_weights())
    monkeypatch.setattr(compressed, "ALWAYS", 100)
    monkeypatch.setattr(compressed, "PER_BYTE", 0)
    refused(write("w.sqz", content), r"claims [\d,]+ weights; there is no room for so many in [\d,]+ bytes")
    with pytest.raises(UserError, match="no room for so many"):
        compressed.write(tiny_weights())


def test_every_change_of_a_byte_and_every_truncation_is_refused():
    content = compressed.write(sparse(tiny_weights()))
    for place in range(len(content)):
        for changed in (content[:place], content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]):
            with pytest.raises(UserError):
                compressed.read(changed, infer.Wishes(), {})


def test_the_authors_format_is_written_as_another_writer_does(tmp_path):
    for version in architecture.VERSIONS:
        first = sparse(tiny_weights(version))
        assert net.encode(from_weights(first, 255)) == deep_compression(first.params)


@pytest.mark.skipif(not (DATA / SOURCES["v1.0"]).exists(), reason="needs ../shared/data with the published weights")
def test_the_published_network_is_stored_without_loss_in_540_kB_and_its_own_file_comes_back(tmp_path):
    published = DATA / SOURCES["v1.0"]
    first = weights.load(published)
    start = time.process_time()
    weights.save(tmp_path / "w.sqz", first)
    again = weights.load(tmp_path / "w.sqz")
    assert time.process_time() - start < 20  # 2 on an idle core
    assert (tmp_path / "w.sqz").stat().st_size < 532_000
    assert_same_params(again.params, first.params)
    weights.save(tmp_path / "w.net", again)
    assert (tmp_path / "w.net").read_bytes() == Path(published).read_bytes()
