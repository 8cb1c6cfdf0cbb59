"""Constraints are projections, and what they remove and share is what the papers say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squeezenet_jax.compress import pruning, sharing
from squeezenet_jax.network.architecture import build
from squeezenet_jax.settings import CompressSettings
from squeezenet_jax.training.compression import Constraint
from squeezenet_jax.weights.bundle import parameter_shapes, unflatten


def random_params(seed=0, **variant):
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(build("v1.0", **variant), channels=3, num_classes=1000)
    return unflatten({name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


@pytest.mark.parametrize("share", ["none", "kmeans", "uniform"])
def test_a_projection_is_onto_the_nearest_point_and_leaves_it_there(share):
    rng = np.random.default_rng(0)
    constraint = Constraint(CompressSettings(prune="uniform", density=0.5, share=share, bits=3, share_from=0.8), 100)
    params = {"conv2": {"kernel": rng.normal(size=(3, 3, 8, 16)).astype(np.float32), "bias": np.ones(16, np.float32)}}
    params, codes = constraint.change(60, params, constraint.begin(params))
    if share != "none":
        params, codes = constraint.change(80, params, codes)
    step = jnp.int32(80)
    project = jax.jit(lambda x: constraint.project(x, codes, step))
    again = project(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), again, params)  # they are allowed already
    noise = {"conv2": {"kernel": rng.normal(size=(3, 3, 8, 16)).astype(np.float32), "bias": np.zeros(16, np.float32)}}
    near = np.asarray(project(noise)["conv2"]["kernel"], np.float64)
    rest = noise["conv2"]["kernel"] - near
    for allowed in (near, params["conv2"]["kernel"]):  # what is taken away is at right angles to what is allowed
        assert abs(np.sum(rest * allowed)) < 1e-3 < np.linalg.norm(rest) * np.linalg.norm(allowed)
    assert 0 < np.linalg.norm(near) < np.linalg.norm(noise["conv2"]["kernel"])


def test_dsd_lifts_the_constraint():
    constraint = Constraint(CompressSettings(prune="uniform", density=0.5, dense_from=0.7), 100)
    params = {"fire2": {"squeeze1x1": {"kernel": np.arange(1.0, 11, dtype=np.float32).reshape(1, 1, 2, 5)}}}
    codes = constraint.begin(params)
    assert [step for step in range(100) if constraint.changes(step)] == [*range(42, 61, 2), 70]
    density = []
    for step in range(100):
        if constraint.changes(step):
            params, codes = constraint.change(step, params, codes)
            density.append(float(np.mean(codes["fire2"]["squeeze1x1"]["kernel"] != 0)))
    assert density[-2:] == [0.5, 1.0] and density[:-1] == sorted(density[:-1], reverse=True)
    np.testing.assert_array_equal(params["fire2"]["squeeze1x1"]["kernel"].ravel(), [0] * 5 + [6, 7, 8, 9, 10])


def test_table_1_keeps_as_many_parameters_as_the_paper_says():
    """arXiv 1602.07360, Table 1: 421,098 of 1,248,424 parameters, biases included; rounded there."""
    kernels = {
        name.removesuffix("/kernel"): np.empty(shape)
        for name, shape in parameter_shapes(build("v1.0"), channels=3, num_classes=1000).items()
        if name.endswith("kernel")
    }
    kept = pruning.densities("table1", 1.0, kernels)
    biases = sum(kernel.shape[-1] for kernel in kernels.values())
    total = sum(kept[name] * kernel.size for name, kernel in kernels.items()) + biases
    assert total == pytest.approx(421_098, rel=0.01)


def test_table_1_is_reached_gradually_too():
    params = random_params(width=0.25)
    constraint = Constraint(CompressSettings(prune="table1"), 100)
    codes, kept = constraint.begin(params), []
    for step in range(100):
        if constraint.changes(step):
            params, codes = constraint.change(step, params, codes)
            kept.append(float(np.mean(codes["conv10"]["kernel"] != 0)))
    assert kept == pytest.approx([pruning.scheduled(0.2, i / 10) for i in range(1, 11)], abs=1e-4)


@pytest.mark.parametrize("total", [1, 9])
def test_what_begins_with_the_last_step_is_not_left_out(total):
    """Rounded, the times fall behind it: nothing would be removed, lifted or shared, without a word."""
    late = {"prune_from": 0.99, "prune_until": 0.99}
    shared = CompressSettings(prune="uniform", density=0.5, share="kmeans", bits=2, share_from=0.99, **late)
    for settings in (shared, CompressSettings(prune="uniform", density=0.5, dense_from=0.99, **late)):
        constraint, params = Constraint(settings, total), random_params(width=0.25)
        codes = constraint.begin(params)
        assert [step for step in range(total) if constraint.changes(step)] == [total - 1]
        params, codes = constraint.change(total - 1, params, codes)
        assert np.mean(params["conv10"]["kernel"] == 0) == pytest.approx(0.5, abs=0.01)
        if settings.share == "kmeans":
            assert len(np.unique(params["conv10"]["kernel"])) <= 4
        else:
            assert (codes["conv10"]["kernel"] != 0).all()


def test_one_threshold_for_all_layers_keeps_the_largest_weights_of_the_network():
    params = random_params(width=0.25)
    constraint = Constraint(CompressSettings(prune="global", density=0.3), 10)
    params["fire9"]["expand3x3"]["kernel"] *= 100
    changed, codes = constraint.change(6, params, constraint.begin(params))
    assert (codes["fire9"]["expand3x3"]["kernel"] != 0).mean() > 0.98 and (codes["conv1"]["kernel"] == 1).all()
    kept = [np.abs(x[x != 0]).min() for x in (changed["fire2"]["squeeze1x1"]["kernel"], changed["conv10"]["kernel"])]
    assert kept[0] == pytest.approx(kept[1], rel=0.01)


def test_a_gradual_pruning_ends_at_its_density():
    assert pruning.scheduled(0.2, 1) == pytest.approx(0.2) and pruning.scheduled(0.2, 0) == 1
    assert pruning.scheduled(0.2, 0.5) == pytest.approx(1 - 0.8 * (1 - 0.125))  # arXiv 1710.01878, Eq. 1


def test_steps_are_multiples_with_little_error():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 50)).astype(np.float32)
    errors = []
    for bits in (2, 4, 8):
        shared, q = sharing.by_steps(kernel, bits)
        assert np.abs(q).max() <= 2 ** (bits - 1) - 1 and len(np.unique(shared)) <= 2**bits
        ratio = shared[q != 0] / q[q != 0]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
        errors.append(sharing.relative_error(kernel, shared))
    # The best uniform quantiser of a Gaussian has an error of 0.1902 with 3 levels and 0.0115 with 16 (Max 1960).
    assert errors[0] ** 2 == pytest.approx(0.19, abs=0.01) and errors[1] ** 2 == pytest.approx(0.013, abs=0.003)
    assert errors[2] < 0.02
