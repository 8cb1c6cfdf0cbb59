"""The tables against numbers that others have published or computed (DeepScale's prototxt files, the paper)."""

import dataclasses

import pytest

from squeezenet_jax.network import architecture
from squeezenet_jax.network.architecture import V1_0, V1_1, FireSpec, Metaparameters, build
from squeezenet_jax.network.trace import count, trace
from squeezenet_jax.system.errors import UserError


def cost(*, image_size=224, num_classes=1000, **changes):
    return count(trace(build(**changes), image_size=image_size, num_classes=num_classes))


# Parameters: arithmetic from the prototxt files; simple bypass adds none.
@pytest.mark.parametrize(
    ("version", "bypass", "params"),
    [
        ("v1.0", "none", 1_248_424),
        ("v1.0", "simple", 1_248_424),
        ("v1.0", "complex", 1_589_672),
        ("v1.1", "none", 1_235_496),
        ("v1.1", "simple", 1_235_496),
        ("v1.1", "complex", 1_572_648),
    ],
)
def test_parameters(version, bypass, params):
    assert cost(version=version, bypass=bypass)[0] == params


# MACs: arithmetic. The v1.1 README's "1.72 GFLOPS" of v1.0 is twice the value at 227 with conv10's padding.
@pytest.mark.parametrize(
    ("version", "bypass", "geometry", "image_size", "macs"),
    [
        ("v1.0", "none", "torchvision", 224, 818_924_576),
        ("v1.0", "simple", "torchvision", 227, 832_667_936),
        ("v1.0", "none", "caffe", 227, 861_339_936),
        ("v1.0", "complex", "torchvision", 224, 1_165_298_720),
        ("v1.0", "none", "same", 224, 835_814_912),
        ("v1.1", "none", "caffe", 224, 349_151_936),
        ("v1.1", "none", "caffe", 227, 387_747_520),
        ("v1.1", "complex", "caffe", 227, 496_930_496),
        ("v1.0", "none", "torchvision", 32, 9_655_328),
        ("v1.1", "none", "torchvision", 64, 21_584_576),
    ],
)
def test_macs(version, bypass, geometry, image_size, macs):
    assert cost(version=version, bypass=bypass, geometry=geometry, image_size=image_size)[1] == macs


@pytest.mark.parametrize(
    ("width", "params"), [(0.25, 178_168), (0.5, 445_128), (0.75, 801_880), (1.5, 2_410_888), (2.0, 3_932_520)]
)
def test_width_multiplier(width, params):
    assert cost(version="v1.0", width=width)[0] == params


# Fig. 3a's models; the paper prints their sizes in MiB, rounded up.
@pytest.mark.parametrize(
    ("squeeze_ratio", "params"),
    [(0.125, 1_248_424), (0.25, 1_967_080), (0.5, 3_404_392), (0.75, 4_841_704), (1.0, 6_279_016)],
)
def test_squeeze_ratios(squeeze_ratio, params):
    assert cost(version="v1.0", metaparameters=Metaparameters(squeeze_ratio=squeeze_ratio))[0] == params


# Fig. 3b's models, at squeeze ratio 0.5.
@pytest.mark.parametrize(
    ("pct3x3", "params"),
    [
        (0.01, 1_478_248),
        (0.125, 1_929_832),
        (0.25, 2_421_352),
        (0.375, 2_912_872),
        (0.5, 3_404_392),
        (0.625, 3_895_912),
        (0.75, 4_387_432),
        (0.875, 4_878_952),
        (0.99, 5_330_536),
    ],
)
def test_shares_of_3x3(pct3x3, params):
    meta = Metaparameters(squeeze_ratio=0.5, pct3x3=pct3x3)
    assert cost(version="v1.0", metaparameters=meta)[0] == params


@pytest.mark.parametrize("arch", [V1_0, V1_1])
def test_metaparameters_of_the_paper_give_its_tables(arch):
    assert architecture.with_metaparameters(arch, Metaparameters()) == arch


def test_what_else_a_fire_has_stays_with_it():
    @dataclasses.dataclass(frozen=True)
    class Scaled(FireSpec):  # as where somebody adds a field
        scale: float = 1.0

    groups = tuple(tuple(Scaled(**vars(spec), scale=0.5) for spec in group) for group in V1_1.groups)
    arch = dataclasses.replace(V1_1, groups=groups)
    arch = architecture.with_metaparameters(arch, Metaparameters(base_e=64))
    arch = architecture.with_bypass(architecture.widen(arch, 0.5), "complex")
    assert {(spec.scale, spec.bypass) for _, spec in arch.fires()} == {(0.5, "identity"), (0.5, "conv")}


def test_odd_filters_are_rounded_half_up():
    spec = Metaparameters(base_e=10, incr_e=0, squeeze_ratio=0.25, pct3x3=0.25).fire(0)
    assert (spec.squeeze, spec.expand1x1, spec.expand3x3) == (3, 7, 3)


def test_paper_table_1_sizes_at_227():
    shapes = {
        layer.name: layer.shape
        for layer in trace(build("v1.0", geometry="torchvision"), image_size=227, num_classes=1000)
    }
    assert [shapes[name][0] for name in ("conv1", "pool1", "pool4", "pool8", "conv10")] == [111, 55, 27, 13, 13]


def test_v1_1_pools_after_fire3_and_fire5():
    names = [layer.name for layer in trace(V1_1, image_size=224, num_classes=10) if "pool" in layer.name]
    assert names == ["pool1", "pool3", "pool5", "pool10"]


@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
def test_bypass_positions(version):
    simple = dict(build(version, bypass="simple").fires())
    complex_ = dict(build(version, bypass="complex").fires())
    assert [number for number, spec in simple.items() if spec.bypass == "identity"] == [3, 5, 7, 9]
    assert [number for number, spec in simple.items() if spec.bypass == "none"] == [2, 4, 6, 8]
    assert [number for number, spec in complex_.items() if spec.bypass == "identity"] == [3, 5, 7, 9]
    assert [number for number, spec in complex_.items() if spec.bypass == "conv"] == [2, 4, 6, 8]


# torchvision's `min_size` of its two SqueezeNets.
@pytest.mark.parametrize(("version", "minimum"), [("v1.0", 21), ("v1.1", 17)])
def test_smallest_image(version, minimum):
    arch = build(version, geometry="torchvision")
    assert trace(arch, image_size=minimum, num_classes=10)[-2].shape == (1, 1, 10)
    with pytest.raises(UserError, match=f"image_size: {minimum - 1} .* at least {minimum}"):
        trace(arch, image_size=minimum - 1, num_classes=10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "v1.2"}, 'version: unknown value "v1.2"; allowed: v1.0, v1.1; did you mean'),
        ({"bypass": "simpel"}, 'did you mean "simple"'),
        ({"width": 0.0}, "width: 0.0 is not allowed; it must be above 0"),
        ({"metaparameters": Metaparameters(pct3x3=1.0)}, "pct3x3: 1.0 is not allowed; it must be above 0 and below 1"),
        ({"metaparameters": Metaparameters(freq=0)}, "freq: 0 is not allowed; it must be at least 1"),
    ],
)
def test_wrong_input_names_field_value_and_what_is_allowed(changes, message):
    with pytest.raises(UserError, match=message):
        build(**({"version": "v1.0"} | changes))


def test_tables_are_frozen_and_hashable():
    assert hash(V1_0) == hash(build("v1.0"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        V1_0.dropout = 0.1
