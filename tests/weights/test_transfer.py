"""Starting a training from weights: what is taken over, what is refused, what stays frozen."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from squeezenet_jax import weights
from squeezenet_jax.data import catalog, fingerprint
from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.system import devices
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.training import train
from squeezenet_jax.training.augment import normalize
from squeezenet_jax.training.steps import Steps, build_model, init_state
from squeezenet_jax.weights import Preprocessing, Weights, transfer
from squeezenet_jax.weights.bundle import collections, flatten, unflatten

GREY = Preprocessing("training", 8, "squash", 8, "L", 1 / 255, (0.5,), (0.5,))
CAFFE = Preprocessing("caffe", 8, "squash", 8, "BGR", 1.0, (104.0, 117.0, 123.0), (1.0,))


class Quiet:
    def start(self, step, total_steps): ...

    def record(self, record): ...

    def notice(self, text): ...


def saved(settings, path, preprocessing=GREY, num_classes=10, labels=()):
    """Random weights of the settings' network, as a file."""
    size, channels = settings.data.image_size, preprocessing.channels
    model = dataclasses.replace(build_model(settings), num_classes=num_classes)
    variables = model.init(jax.random.key(7), np.zeros((1, size, size, channels), np.float32))
    tensors = {name: np.asarray(x) for collection in variables.values() for name, x in flatten(collection).items()}
    params = unflatten(tensors)
    weights.save(path, Weights(settings.model.architecture(), params, num_classes, channels, preprocessing, labels))
    return params


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_equal_classes_take_every_tensor(tiny, tmp_path, norm):
    settings = tiny(model__init_from=str(tmp_path / "w.safetensors"), model__norm=norm)
    params = saved(settings, tmp_path / "w.safetensors")
    got = transfer.initial_params(settings.model, settings.data)
    jax.tree.map(np.testing.assert_array_equal, got, params)


def test_training_goes_on_from_the_averages_of_batch_norm(tiny, tmp_path):
    settings = tiny(model__init_from=str(tmp_path / "w.safetensors"), model__norm="batch")
    params = saved(settings, tmp_path / "w.safetensors")
    assert params["conv1"].keys() == {"kernel", "bias", "scale", "mean", "var"}
    drawn = collections(settings.trace(), jax.tree.map(np.zeros_like, params))
    steps = Steps(None, lambda key: drawn, lambda variables: variables, None, None, None)
    state = init_state(settings, steps, None, None, devices.data_mesh())
    for collection, layers in collections(settings.trace(), params).items():
        jax.tree.map(np.testing.assert_array_equal, state[collection], layers)
    assert state.keys() == {"params", "batch_stats"} and (state["batch_stats"]["conv1"]["var"] == 1).all()


def test_other_classes_leave_conv10_to_the_initialiser(tiny, tmp_path):
    settings = tiny(model__init_from=str(tmp_path / "w.safetensors"))
    params = saved(settings, tmp_path / "w.safetensors", num_classes=7)
    got = transfer.initial_params(settings.model, settings.data)
    assert params.keys() - got.keys() == {"conv10"}


@pytest.fixture
def insects(tmp_path):
    """Photographs in three class folders."""
    for split in ("train", "test"):
        for name in ("ant", "bee", "cat"):
            (tmp_path / "photographs" / split / name).mkdir(parents=True)
            (tmp_path / "photographs" / split / name / "1.jpg").touch()
    return tmp_path / "photographs"


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (("ant", "bee", "cat"), [0, 1, 2]),
        (("cat", "ant", "bee"), [1, 2, 0]),
        (("ant", "bee", "dog"), None),
        ((), [0, 1, 2]),
    ],
)
def test_conv10_is_kept_for_classes_of_the_same_names(tiny, tmp_path, insects, labels, order, capsys):
    path = tmp_path / "w.safetensors"
    settings = tiny(
        model__init_from=str(path),
        data__name="folder",
        data__dir=str(insects),
        data__train_split="train",
        data__eval_split="test",
    )
    params = saved(settings, path, num_classes=3, labels=labels)["conv10"]
    transfer._note.cache_clear()
    got = transfer.initial_params(settings.model, settings.data)
    assert ("conv10" in got) == (order is not None)
    if order is not None:
        for name in ("kernel", "bias"):
            np.testing.assert_array_equal(got["conv10"][name], params[name][..., order])
    assert ("have no class names: conv10 is kept" in capsys.readouterr().err) == (labels == ())


def test_conv10_is_kept_for_data_whose_classes_have_no_names_which_is_said_once(tiny, tmp_path, capsys):
    """As digits' have none."""
    path = tmp_path / "w.safetensors"
    settings = tiny(model__init_from=str(path))
    params = saved(settings, path, labels=tuple("abcdefghij"))
    transfer._note.cache_clear()
    for _ in range(2):
        got = transfer.initial_params(settings.model, settings.data)
        jax.tree.map(np.testing.assert_array_equal, got, params)
    note = "note: the data digits have no class names: conv10 is kept, since there are 10 classes in both\n"
    assert capsys.readouterr().err == note


@pytest.mark.parametrize(("ours", "theirs", "how"), [(True, False, "without"), (False, True, "with"), (True, True, "")])
def test_a_kept_conv10_that_is_to_be_activated_otherwise_is_said_to_be(tiny, tmp_path, capsys, ours, theirs, how):
    path = tmp_path / "w.safetensors"
    saved(tiny(model__conv10_relu=theirs), path)
    settings = tiny(model__init_from=str(path), model__conv10_relu=ours)
    transfer._note.cache_clear()
    transfer.initial_params(settings.model, settings.data)
    note = f"note: model.conv10_relu: {ours}, but conv10 of the weights was trained {how} it\n"
    assert (note in capsys.readouterr().err) == bool(how)


def test_conv10_is_new_where_the_order_of_the_classes_is_not_known(tiny, tmp_path, insects):
    """Weights without names, for folders that sort in two ways."""
    for path in [*insects.glob("*/*")]:
        path.rename(path.with_name({"ant": "x1", "bee": "x10", "cat": "x2"}[path.name]))
    settings = tiny(
        model__init_from=str(tmp_path / "w.safetensors"),
        data__name="folder",
        data__dir=str(insects),
        data__train_split="train",
        data__eval_split="test",
    )
    params = saved(settings, tmp_path / "w.safetensors", num_classes=3)
    assert params.keys() - transfer.initial_params(settings.model, settings.data).keys() == {"conv10"}


def test_bgr_weights_compute_on_rgb_what_they_computed_on_bgr(tiny, tmp_path):
    settings = tiny(
        model__init_from=str(tmp_path / "w.safetensors"),
        data__channels=3,
        data__mean=(123 / 255, 117 / 255, 104 / 255),
        data__std=(1 / 255,),
    )
    params = saved(settings, tmp_path / "w.safetensors", CAFFE)
    got = transfer.initial_params(settings.model, settings.data)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    model = build_model(settings)
    as_trained = pixels[..., ::-1].astype(np.float32) - np.float32(CAFFE.mean)
    expected = model.apply({"params": params}, as_trained)
    actual = model.apply({"params": got}, normalize(pixels, settings.data.mean, settings.data.std))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__mean": (0.4,)}, r"data\.mean: \(0\.4,\) is not what the weights expect, \(0\.5,\)"),
        ({"data__std": (0.4,)}, r"data\.std: \(0\.4,\) is not what the weights expect, \(0\.5,\)"),
        ({"data__channels": 3}, r"data\.channels: 3 does not match model\.init_from, which takes 1"),
        ({"model__geometry": "caffe"}, r"model\.geometry: caffe is not that of the weights .*, which is same$"),
        ({"model__version": "v1.1"}, r"model\.init_from: the weights have another stem or other pools"),
        ({"model__activation": "elu"}, r"model\.activation: elu is not that of the weights .*, which is relu$"),
        ({"model__squeeze_activation": False}, r"model\.squeeze_activation: False is not that .*, which is True$"),
        ({"model__width": 0.25}, r"model\.init_from: .* cannot be the start of this network: .* conv1/kernel"),
        (
            {"model__bypass": "complex"},
            r"model\.init_from: .* cannot be the start .* missing fire2/bypass",
        ),
        ({"model__norm": "group"}, r"model\.norm: group is not that of the weights in .*, which is none$"),
        ({"model__init_from": "absent.safetensors"}, r"absent\.safetensors: no such file"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, tmp_path, changes, message):
    path = str(tmp_path / "w.safetensors")
    saved(tiny(), path)
    settings = tiny(**({"model__init_from": path} | changes))
    with pytest.raises(UserError, match=message) as caught:
        transfer.initial_params(settings.model, settings.data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("stem.*pools", {"stem": {"pool": True}}),
        ("geometry", {"conv10_padding": 1}),
        ("geometry", {"pool_ceil": True}),
    ],
)
def test_the_same_kernels_at_other_places_are_refused(tiny, part, changes):
    """Weights whose tensors would all fit, of a table that differs in one number."""
    ours = tiny().model.architecture()
    nested = {"stem": dataclasses.replace(ours.stem, **changes["stem"])} if "stem" in changes else changes
    theirs = dataclasses.replace(ours, **nested)
    assert theirs != ours
    transfer._check_geometry(ours, ours, "same")
    with pytest.raises(UserError, match=part):
        transfer._check_geometry(theirs, ours, "same")


def test_another_activation_of_the_bypass_is_refused(tiny, tmp_path):
    path = tmp_path / "w.safetensors"
    saved(tiny(model__bypass="complex"), path)
    settings = tiny(model__bypass="complex", model__bypass_relu=False, model__init_from=str(path))
    with pytest.raises(UserError, match=r"model\.bypass_relu: False is not that .*, which is True$"):
        transfer.initial_params(settings.model, settings.data)


def test_a_run_that_was_trained_on_what_is_held_out_now_is_no_start(tiny, tmp_path, monkeypatch):
    """Its accuracy would be one on training images."""
    before = tiny(data__train_split="train[:1000]", data__eval_split="train[1000:]")
    inputs = {"data": fingerprint.fingerprint(before.data)}
    run = {"settings": {"data": dataclasses.asdict(before.data)}, "inputs": inputs}
    run["dataset"] = dataclasses.asdict(catalog.info("digits", ""))
    tmp_path.joinpath("run.json").write_text(json.dumps(run))

    monkeypatch.setattr(transfer, "initial_params", lambda model, data: None)  # the run has no checkpoint

    def check(**changes):
        train.check(tiny(model__init_from=str(tmp_path), **changes))

    with pytest.raises(UserError, match=r"eval_split: train\[900:\] shares 100 images with train\[:1000\], which"):
        check(data__train_split="train[:900]", data__eval_split="train[900:]")
    check(data__train_split="train[:900]", data__eval_split="train[900:]", data__allow_overlap=True)
    check(data__train_split="train[:1000]", data__eval_split="train[1000:]")
    check(data__eval_split="test")  # which the run did not read
    run["inputs"] = {"data": {"train": "1434 images in 10 classes, 0123456789abcdef"}}  # others
    tmp_path.joinpath("run.json").write_text(json.dumps(run))
    check(data__train_split="train[:900]", data__eval_split="train[900:]")


def test_nor_is_one_that_began_with_such_a_run(tiny, tmp_path, monkeypatch):
    data = tiny(data__train_split="train[:500]", data__eval_split="test").data
    for name, split, start in (
        ("first", "train", {}),
        ("second", "train[:500]", {"init_from": str(tmp_path / "first")}),
        ("circle", "train[:500]", {"init_from": str(tmp_path / "circle")}),
        ("scratch", "train[:500]", {"init_from": str(tmp_path / "first"), "start": "scratch"}),
        ("gone", "train[:500]", {"init_from": str(tmp_path / "none"), "start": "init_from"}),
    ):
        inputs = {"data": fingerprint.fingerprint(dataclasses.replace(data, train_split=split))}
        run = {"settings": {"data": dataclasses.asdict(data) | {"train_split": split}, "model": start}}
        run |= {"inputs": inputs, "dataset": dataclasses.asdict(catalog.info("digits", ""))}
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(run))
    monkeypatch.setattr(transfer, "initial_params", lambda model, data: None)

    def check(name):
        changes = {"data__train_split": "train[:500]", "data__eval_split": "train[500:]"}
        train.check(tiny(model__init_from=str(tmp_path / name), **changes))

    expected = "shares 933 images with train, which .*first, with which model.init_from began, was trained on"
    with pytest.raises(UserError, match=expected):
        check("second")
    for name in ("circle", "scratch", "gone"):
        check(name)


def test_a_digest_is_of_values_shapes_and_class_names_but_not_of_the_place(tiny, monkeypatch):
    ones, names = np.ones((2, 3), np.float32), ("a", "b\udcff")  # a folder's name need not be UTF-8

    def digest(params, labels):
        monkeypatch.setattr(transfer, "load", lambda _: types.SimpleNamespace(params=params, labels=labels))
        return transfer.digest(tiny().model)

    first = digest({"x": {"kernel": ones, "bias": ones[0]}}, names)
    assert first == digest({"x": {"bias": ones[0].copy(), "kernel": np.asfortranarray(ones)}}, names)
    others = [
        digest({"x": {"kernel": 2 * ones, "bias": ones[0]}}, names),
        digest({"x": {"kernel": ones.T, "bias": ones[0]}}, names),
        digest({"y": {"kernel": ones, "bias": ones[0]}}, names),
        digest({"x": {"kernel": ones, "bias": ones[0]}}, names[::-1]),
        digest({"x": {"kernel": ones, "bias": ones[0]}}, ()),
    ]
    assert len({first, *others}) == 6


def test_classes_that_are_only_numbered_alike_leave_conv10_to_the_initialiser(tiny, tmp_path, insects):
    for path in [*insects.glob("*/*")]:
        path.rename(path.with_name(str(["ant", "bee", "cat"].index(path.name))))
    settings = tiny(
        model__init_from=str(tmp_path / "w.safetensors"),
        data__name="folder",
        data__dir=str(insects),
        data__train_split="train",
        data__eval_split="test",
    )
    params = saved(settings, tmp_path / "w.safetensors", num_classes=3, labels=("ant", "bee", "cat"))
    got = transfer.initial_params(settings.model, settings.data)
    assert params.keys() - got.keys() == {"conv10"}


def test_nothing_can_be_frozen_without_weights(tiny):
    with pytest.raises(UserError, match=r"model\.freeze: fire5 is not allowed without weights"):
        tiny(model__freeze="fire5")
    with pytest.raises(UserError, match=r"model\.freeze"):
        tiny(model__freeze="fire5", model__init_from="w.safetensors", model__start="scratch")


def test_training_starts_from_the_weights_and_leaves_frozen_modules_as_they_are(tiny, tmp_path):
    path = str(tmp_path / "w.safetensors")
    settings = tiny(model__init_from=path, model__freeze="fire5", train__epochs=1.0, optimizer__weight_decay=0.1)
    params = saved(settings, path, num_classes=4)
    directory = RunDirectory(tmp_path / "run")
    directory.begin({"settings": dataclasses.asdict(settings)})
    status = train.train(settings, directory, Quiet(), lambda: False)
    assert status in ("done", "stalled")
    trained = weights.load(tmp_path / "run").params
    frozen = {"conv1", "fire2", "fire3", "fire4", "fire5"}
    for name in trained:
        if name in frozen:
            jax.tree.map(np.testing.assert_array_equal, trained[name], params[name])
        elif name != "conv10":
            kernel, before = trained[name]["expand3x3"]["kernel"], params[name]["expand3x3"]["kernel"]
            assert 0 < np.abs(kernel - before).max() < 0.1  # moved, and from there
    assert trained["conv10"]["kernel"].shape[-1] == 10
