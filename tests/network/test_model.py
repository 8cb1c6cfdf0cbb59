"""The modules against the tables and against an independent forward pass in NumPy."""

import contextlib
import dataclasses
import functools
import itertools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squeezenet_jax.network import lowering
from squeezenet_jax.network.architecture import Architecture, FireSpec, Metaparameters, build
from squeezenet_jax.network.model import Conv, FireBlock, SqueezeNet, _dropout
from squeezenet_jax.network.trace import trace
from squeezenet_jax.system.errors import UserError

VARIANTS = [
    {"version": version, "bypass": bypass, "stem": stem, "geometry": geometry}
    for version, bypass, stem, geometry in itertools.product(
        ("v1.0", "v1.1"), ("none", "simple", "complex"), ("card", "small"), ("same", "caffe", "torchvision")
    )
] + [
    {"version": "v1.0", "metaparameters": Metaparameters(squeeze_ratio=0.5, pct3x3=0.01)},
    *({"version": "v1.1", "bypass": "complex", "norm": norm} for norm in ("batch", "group")),
]


def abstract_variables(model, size, channels=3):
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return flax.traverse_util.flatten_dict(jax.eval_shape(model.init, jax.random.key(0), image), sep="/")


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_table_and_modules_agree_on_names_parameters_and_output(variant):
    arch = build(**variant)
    layers = trace(arch, image_size=64, num_classes=7)
    assert {name: leaf.shape for name, leaf in abstract_variables(SqueezeNet(arch, 7), 64).items()} == {
        f"{collection}/{row.name}/{name}": shape
        for row in layers
        for collection, shapes in row.collections.items()
        for name, shape in shapes.items()
    }
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    logits, captured = jax.eval_shape(
        lambda image: SqueezeNet(arch, 7).init_with_output(jax.random.key(0), image, mutable=True),
        image,
    )
    shapes = flax.traverse_util.flatten_dict(captured["intermediates"])
    assert {"/".join(path[:-1]): leaf[0].shape[1:] for path, leaf in shapes.items()} == {
        layer.name: layer.shape for layer in layers if layer.params
    }
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("bypass", ["identity", "conv"])
def test_with_zero_expand_kernels_a_bypass_is_all_that_is_left(bypass):
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 16))  # negative values too: no ReLU may follow the sum
    block = FireBlock(FireSpec(4, 8, 8, bypass), dataclasses.replace(build("v1.1"), bypass_relu=False), Conv)
    params = block.init(jax.random.key(1), x)["params"]
    silent = {name: jax.tree.map(jnp.zeros_like, leaf) if "expand" in name else leaf for name, leaf in params.items()}
    y = block.apply({"params": silent}, x)
    if bypass == "identity":
        np.testing.assert_array_equal(y, x)
    else:
        expected = jnp.einsum("bhwc,ck->bhwk", x, params["bypass"]["kernel"][0, 0]) + params["bypass"]["bias"]
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def relu(x):
    return np.maximum(x, 0)


def conv(x, layer, *, stride=1, pad=((0, 0), (0, 0))):
    """Direct convolution in float64, one output position at a time."""
    kernel, bias = np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"], np.float64)
    x = np.pad(x, ((0, 0), *pad, (0, 0)))
    k = kernel.shape[0]
    rows, cols = ((n - k) // stride + 1 for n in x.shape[1:3])
    out = np.empty((len(x), rows, cols, kernel.shape[-1]))
    for i, j in np.ndindex(rows, cols):
        patch = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
        out[:, i, j] = np.tensordot(patch, kernel, 3) + bias
    return out


def pool(x, *, ceil):
    count = [(int(np.ceil((n - 3) / 2)) if ceil else (n - 3) // 2) + 1 for n in x.shape[1:3]]
    out = np.empty((len(x), *count, x.shape[-1]))
    for i, j in np.ndindex(*count):
        out[:, i, j] = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))  # a slice ends at the border by itself
    return out


def reference(params, x, version, bypass, geometry):
    """SqueezeNet written down once more, from the prototxt files and the paper's Sec. 6, with nothing shared."""
    ceil, kernel = geometry != "same", {"v1.0": 7, "v1.1": 3}[version]
    total = max((-(-x.shape[1] // 2) - 1) * 2 + kernel - x.shape[1], 0) if geometry == "same" else 0
    border = (total // 2, total - total // 2)
    x = pool(relu(conv(x, params["conv1"], stride=2, pad=(border, border))), ceil=ceil)
    pooled_after = {"v1.0": (4, 8), "v1.1": (3, 5)}[version]
    for number in range(2, 10):
        fire = params[f"fire{number}"]
        s = relu(conv(x, fire["squeeze1x1"]))
        y = np.concatenate(
            [relu(conv(s, fire["expand1x1"])), relu(conv(s, fire["expand3x3"], pad=((1, 1), (1, 1))))], -1
        )
        if bypass != "none" and number % 2:
            y = y + x
        elif bypass == "complex":
            y = y + relu(conv(x, fire["bypass"]))
        x = pool(y, ceil=ceil) if number in pooled_after else y
    margin = 1 if geometry == "caffe" and version == "v1.0" else 0
    return relu(conv(x, params["conv10"], pad=((margin, margin), (margin, margin)))).mean((1, 2))


@pytest.mark.parametrize("geometry", ["same", "caffe", "torchvision"])
@pytest.mark.parametrize("bypass", ["none", "simple", "complex"])
@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
def test_equals_an_independent_forward_pass(version, bypass, geometry):
    arch = build(version, bypass=bypass, geometry=geometry, width=0.25)
    image = np.random.default_rng(0).normal(size=(2, 50, 50, 3))  # 50: pools of odd and even sizes
    model = SqueezeNet(arch, 5)
    params = model.init(jax.random.key(3), jnp.asarray(image, jnp.float32))["params"]
    biases = jax.tree.map(lambda leaf: jnp.linspace(-0.2, 0.2, leaf.size) if leaf.ndim == 1 else 0.0, params)
    params = jax.tree.map(jnp.add, params, biases)  # of both signs, so that every ReLU has something to do
    logits = model.apply({"params": params}, jnp.asarray(image, jnp.float32))
    np.testing.assert_allclose(logits, reference(params, image, version, bypass, geometry), rtol=1e-4, atol=1e-5)


def test_pool_before_the_bias_is_pool_behind_the_relu():
    """Values to the bit; gradients to rounding (the bias's adds up in another order)."""
    conv = Conv(8, (3, 3))
    x = jax.random.normal(jax.random.key(0), (2, 11, 12, 3))
    params = conv.init(jax.random.key(1), x)["params"] | {"bias": jnp.linspace(-1, 1, 8)}
    pool = functools.partial(lowering.max_pool, ceil=True)

    def before(params):
        return jax.nn.relu(conv.apply({"params": params}, x, pool=pool))

    def behind(params):
        return pool(jax.nn.relu(conv.apply({"params": params}, x)))

    np.testing.assert_array_equal(before(params), behind(params))
    gradients = [jax.grad(lambda params, f=f: (f(params) ** 2).sum())(params) for f in (before, behind)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *gradients)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", [contextlib.nullcontext, lowering.portable])
@pytest.mark.parametrize("bypass", ["none", "identity", "conv"])
def test_fire_block_with_a_pool_is_the_pool_of_a_fire_block(bypass, form, dtype):
    arch = build("v1.1", geometry="caffe")
    block = FireBlock(FireSpec(4, 8, 8, bypass), arch, functools.partial(Conv, dtype=jnp.dtype(dtype)))
    x = jax.random.normal(jax.random.key(0), (2, 11, 12, 16)).astype(dtype)
    params = jax.tree.map(lambda leaf: leaf + 0.05, block.init(jax.random.key(1), x)["params"])  # biases too
    pool = functools.partial(lowering.max_pool, ceil=True)

    def inside(params, x):
        return lowering.join(block.apply({"params": params}, x, pooled=True))

    def behind(params, x):
        return lowering.join(jax.tree.map(pool, block.apply({"params": params}, x)))

    with form():
        np.testing.assert_array_equal(inside(params, x).astype("float32"), behind(params, x).astype("float32"))
        inner, outer = (
            jax.grad(lambda *args, f=f: (f(*args).astype("float32") ** 2).sum(), argnums=(0, 1))(params, x)
            for f in (inside, behind)
        )
    for one, other in zip(jax.tree.leaves(inner), jax.tree.leaves(outer), strict=True):
        atol = (1e-5 if dtype == "float32" else 2e-2) * float(jnp.abs(other).max())
        np.testing.assert_allclose(one.astype("float32"), other.astype("float32"), atol=atol)


def normalized(norm, x, **changes):
    """A convolution of a kernel that changes nothing and a norm of random scale: what it gives, and its variables."""
    conv = Conv(x.shape[-1], (1, 1), norm=norm)
    variables = conv.init(jax.random.key(1), x)
    rng, params = np.random.default_rng(2), variables["params"]
    params = params | {name: jnp.asarray(rng.normal(size=params[name].shape), "f4") for name in ("scale", "bias")}
    variables = variables | {"params": params | {"kernel": jnp.eye(x.shape[-1])[None, None]}}
    y, changed = conv.apply(variables, x, mutable=["batch_stats"], **changes)
    return np.asarray(y, np.float64), variables | changed


def test_batch_norm_is_by_the_statistics_of_the_examples_that_count():
    """Ioffe & Szegedy, arXiv 1502.03167, Algorithm 1, in float64."""
    x = np.random.default_rng(0).normal(3, 2, (4, 5, 6, 7)).astype("f4")
    y, variables = normalized("batch", x, mask_B=jnp.asarray([1, 0, 1, 1]))
    counted, params = x[[0, 2, 3]].astype("f8"), variables["params"]
    mean, var = counted.mean((0, 1, 2)), counted.var((0, 1, 2))
    expected = (counted - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y[[0, 2, 3]], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(variables["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)  # from 0, by a tenth
    np.testing.assert_allclose(variables["batch_stats"]["var"], 0.9 + 0.1 * var, rtol=1e-5)  # from 1
    _, untouched = normalized("batch", x, mask_B=jnp.zeros(4))  # nothing could be read
    assert not untouched["batch_stats"]["mean"].any() and (untouched["batch_stats"]["var"] == 1).all()


def test_in_half_precision_an_evaluation_with_batch_norm_is_as_exact_as_training():
    """With a mean of thirty standard deviations, which both have to take away."""
    x = jax.random.normal(jax.random.key(0), (64, 4, 4, 8)) + 30
    conv = Conv(8, (1, 1), norm="batch", dtype=jnp.bfloat16)
    variables = conv.init(jax.random.key(1), x)
    variables["params"]["kernel"] = jnp.eye(8)[None, None]
    variables["batch_stats"] = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
    evaluated = conv.apply(variables, x).astype(jnp.float32)
    trained = conv.apply(variables, x, jnp.ones(64), mutable=["batch_stats"])[0].astype(jnp.float32)
    exact = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    assert abs(evaluated - exact).mean() < 1.1 * abs(trained - exact).mean()
    assert np.abs((evaluated - exact).mean((0, 1, 2))).max() < 0.01  # nor is a channel shifted


@pytest.mark.parametrize(("channels", "groups"), [(64, 4), (40, 2), (7, 1), (34, 2)])
def test_group_norm_is_by_the_statistics_of_sixteen_channels_or_more_of_an_example(channels, groups):
    """Wu & He, arXiv 1803.08494, Eqs. 1 to 3, in float64."""
    x = np.random.default_rng(0).normal(3, 2, (2, 5, 6, channels)).astype("f4")
    y, variables = normalized("group", x)
    for b, part in itertools.product(range(2), np.split(np.arange(channels), groups)):
        own = x[b][:, :, part].astype("f8")
        unit = (own - own.mean()) / np.sqrt(own.var() + 1e-5)
        expected = unit * variables["params"]["scale"][part] + variables["params"]["bias"][part]
        np.testing.assert_allclose(y[b][:, :, part], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_training_with_batch_norm_is_by_the_batch_and_needs_room_for_its_averages():
    model = SqueezeNet(build("v1.1", stem="small", width=0.125, norm="batch"), 5)
    image, keys = jax.random.normal(jax.random.key(0), (4, 16, 16, 3)), jax.random.split(jax.random.key(1), 4)
    variables = model.init(jax.random.key(2), image)
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        model.apply(variables, image, keys)
    logits, changed = model.apply(variables, image, keys, mutable=["batch_stats"])  # without a mask all count
    again, _ = model.apply(variables, image, keys, jnp.ones(4), mutable=["batch_stats"])
    np.testing.assert_array_equal(logits, again)
    fewer, _ = model.apply(variables, image, keys, jnp.asarray([1, 1, 1, 0]), mutable=["batch_stats"])
    assert not np.allclose(logits[:3], fewer[:3], rtol=1e-3)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a != b).any(), changed["batch_stats"], variables["batch_stats"]))
    alone = [model.apply(variables | changed, one[None])[0] for one in image]  # evaluated, each by itself
    np.testing.assert_allclose(model.apply(variables | changed, image), alone, rtol=1e-4, atol=1e-6)


def test_bfloat16_activations_float32_parameters_and_logits():
    model = SqueezeNet(build("v1.1", stem="small", width=0.25), 10, dtype="bfloat16")
    image = jnp.ones((1, 16, 16, 3))
    params = model.init(jax.random.key(0), image)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    logits, captured = model.apply({"params": params}, image, capture_intermediates=True)
    assert logits.dtype == jnp.float32
    convolution = captured["intermediates"]["conv10"]["__call__"][0]
    assert convolution.dtype == jnp.bfloat16


def test_dropout_needs_a_key_and_belongs_to_the_example():
    model = SqueezeNet(build("v1.1", stem="small", width=0.125), 10)
    image = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    params = model.init(jax.random.key(0), image)["params"]
    still = [model.apply({"params": params}, image) for _ in range(2)]
    np.testing.assert_array_equal(*still)
    keys = jax.random.split(jax.random.key(1), 3)
    first, again, other = (
        model.apply({"params": params}, image, keys[jnp.array(two)]) for two in ([0, 1], [0, 1], [2, 1])
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other)[0].max() > 0
    np.testing.assert_allclose(first[1], other[1], rtol=1e-6)  # its own key decides


def test_dropout_changes_logits_at_random_but_not_on_average():
    """With `rate` not 0.5: a share kept in place of one dropped, or values that are not scaled up, would show.

    Without conv10's ReLU logits are linear in what is dropped, so their mean over keys is the logits without dropout.
    """
    arch = dataclasses.replace(build("v1.1", stem="small", width=0.125), dropout=0.25, conv10_relu=False)
    model, count = SqueezeNet(arch, num_classes=10, kernel_init="he_uniform"), 4096
    image = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
    params = model.init(jax.random.key(0), image)["params"]
    still = model.apply({"params": params}, image)[0]
    keys = jax.random.split(jax.random.key(1), count)
    dropped = jax.jit(jax.vmap(lambda key: model.apply({"params": params}, image, key[None])[0]))(keys)
    error = dropped.std(0) / count**0.5
    np.testing.assert_array_less(np.abs(dropped.mean(0) - still), 5 * error)
    np.testing.assert_array_less(20 * error, np.abs(still).max())  # so that a scale of 0.75 is seen


@pytest.mark.parametrize("conv10_relu", [True, False])
def test_logits_are_the_mean_of_conv10s_maps_behind_its_relu_where_it_has_one(conv10_relu):
    arch = dataclasses.replace(build("v1.1", stem="small", width=0.125), conv10_relu=conv10_relu)
    model = SqueezeNet(arch, 10, "he_uniform", "same", "float32")
    image = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    params = model.init(jax.random.key(1), image)["params"]
    logits, captured = model.apply({"params": params}, image, mutable="intermediates")
    (maps,) = captured["intermediates"]["conv10"]["output"]
    assert (maps < 0).any() and (maps > 0).any()
    np.testing.assert_allclose(
        logits, (np.maximum(maps, 0) if conv10_relu else maps).mean((1, 2)), rtol=1e-5, atol=1e-6
    )


def test_dropout_drops_single_values_and_scales_up_what_it_keeps():
    x = jnp.arange(1.0, 1 + 8 * 8 * 64).reshape(1, 8, 8, 64)
    y = np.asarray(_dropout(x, jax.random.split(jax.random.key(0), 1), 0.25))
    kept = y != 0
    np.testing.assert_allclose(y[kept], np.asarray(x)[kept] / 0.75, rtol=1e-6)
    assert np.mean(kept) == pytest.approx(0.75, abs=0.03)
    share_by_channel = kept.mean((0, 1, 2))
    assert (share_by_channel > 0).all() and (share_by_channel < 1).all()  # no channel as a whole


# U(-a, a) with variance scale / fan: a = sqrt(3 scale / fan). conv1 of v1.1 has fan-in 27, fan-out 576.
@pytest.mark.parametrize(
    ("kernel_init", "bound"),
    [
        ("lecun_uniform", (3 / 27) ** 0.5),  # Caffe's "xavier"
        ("he_uniform", (6 / 27) ** 0.5),  # torchvision's kaiming_uniform_
        ("glorot_uniform", (6 / (27 + 576)) ** 0.5),  # the card's
    ],
)
def test_initialisers(kernel_init, bound):
    model = SqueezeNet(build("v1.1"), 10, kernel_init, "normal_0.01")
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert np.abs(params["conv1"]["kernel"]).max() == pytest.approx(bound, rel=0.01)
    assert np.std(params["conv10"]["kernel"]) == pytest.approx(0.01, rel=0.05)
    assert not any(leaf.any() for name, leaf in flax.traverse_util.flatten_dict(params).items() if name[-1] == "bias")


def test_orthogonal_kernels_are_orthogonal():
    model = SqueezeNet(build("v1.1"), 10, "orthogonal")
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    columns = params["conv1"]["kernel"].reshape(27, 64)
    np.testing.assert_allclose(columns @ columns.T, np.eye(27), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "size", "message"),
    [
        ({"kernel_init": "lsuv"}, 32, 'kernel_init: unknown value "lsuv"; allowed: glorot_uniform, .*orthogonal'),
        ({"conv10_init": "normal"}, 32, 'conv10_init: unknown value "normal"; .* did you mean "normal_0.01"'),
        ({}, 16, "image_size: 16 is too small for this network; it must be at least 29"),
    ],
)
def test_wrong_arguments_and_too_small_images_are_one_line(arguments, size, message):
    with pytest.raises(UserError, match=message):
        SqueezeNet(build("v1.1"), 10, **arguments).init(jax.random.key(0), jnp.zeros((1, size, size, 3)))


class Coupled(Architecture):
    """A table that promises nothing, though its numbers are those of the paper's."""

    examples_independent = False
    activations_monotone = False


def test_what_a_table_does_not_promise_is_not_used(monkeypatch):
    """Early pooling puts W x into a max-pool, negative values too; else it gets what the ReLU gave."""
    pooled = []
    monkeypatch.setattr(
        lowering, "max_pool", lambda x, *, ceil, f=lowering.max_pool: [f(x, ceil=ceil), pooled.append(x)][0]
    )
    plain = build("v1.1", width=0.125)
    coupled = Coupled(**{field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)})
    image = jax.random.normal(jax.random.key(0), (32, 32, 32, 3))
    variables = SqueezeNet(plain, 5).init(jax.random.key(1), image)
    logits, negative = {}, {}
    for arch in (plain, coupled):
        pooled.clear()
        logits[arch] = SqueezeNet(arch, 5).apply(variables, image)
        negative[arch] = [bool((x < 0).any()) for x in pooled]
    assert negative == {plain: [True] * 5, coupled: [False] * 5}  # of pool3 and pool5 the expands' parts, one by one
    np.testing.assert_array_equal(logits[plain], logits[coupled])  # a ReLU is monotone
    for training in (True, False):  # evaluated, an example never depends on another
        assert lowering.num_microbatches(plain, 256, 32, training=training) == 8
        assert lowering.num_microbatches(coupled, 256, 32, training=training) == (1 if training else 8)
