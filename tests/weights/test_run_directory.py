"""A run's newest checkpoint, with the preprocessing that its training used; reading changes nothing."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_settings import make_settings
from weight_files import assert_same_params

from squeezenet_jax import weights
from squeezenet_jax.__main__ import main
from squeezenet_jax.data import sources
from squeezenet_jax.runs.checkpoint import Checkpoints
from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.training import augment, optimizer
from squeezenet_jax.training.steps import TrainState
from squeezenet_jax.weights import images
from squeezenet_jax.weights.bundle import collections, parameter_shapes, unflatten
from squeezenet_jax.weights.formats import run_directory

OLD_FILES = Path(__file__).parents[1] / "old_files"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(directory, settings, parameters of step 7); step 3 has been saved too."""
    settings = make_settings(model__bypass="simple", model__version="v1.1", model__width=0.5, data__image_size=16)
    shapes = parameter_shapes(settings.model.architecture(), channels=1, num_classes=10)
    rng = np.random.default_rng(0)
    first = unflatten({name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()})
    rate = optimizer.schedule(settings.optimizer, total_steps=9, steps_per_epoch=3)
    tx = optimizer.build_optimizer(settings.optimizer, rate)
    directory = RunDirectory(tmp_path_factory.mktemp("run"))
    directory.begin({"experiment": "bypass", "preset": "digits", "settings": dataclasses.asdict(settings)})
    checkpoints = Checkpoints(directory.path / "checkpoints", keep=2)
    for step in (3, 7):
        params = jax.tree.map(lambda x, step=step: x + step, first)
        checkpoints.save(step, TrainState(jnp.int32(step), params, tx.init(params)))
    return directory.path, settings, params


@pytest.fixture
def run(finished, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run", *finished[1:]


def fingerprint(path):
    files = sorted(path.rglob("*"))
    return [(str(f), hashlib.sha256(f.read_bytes()).hexdigest() if f.is_file() else "") for f in files]


def test_the_newest_checkpoint_is_read(run):
    path, settings, params = run
    before = fingerprint(path)
    again = weights.load(path)
    assert_same_params(again.params, jax.tree.map(np.asarray, params))
    assert again.arch == settings.model.architecture()
    assert (again.num_classes, again.channels) == (10, 1)
    assert again.provenance["step"] == "7" and again.provenance["experiment"] == "bypass"
    assert fingerprint(path) == before


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_averages_of_batch_norm_are_read_too_and_those_of_parameters_before_these(run, ema_decay):
    path, settings, _ = run
    model, train = (settings.model, settings.train)
    model, train = dataclasses.replace(model, norm="batch"), dataclasses.replace(train, ema_decay=ema_decay)
    settings = dataclasses.replace(settings, model=model, train=train)
    shapes = parameter_shapes(settings.model.architecture(), channels=1, num_classes=10)
    rng = np.random.default_rng(0)
    params = unflatten({name: rng.uniform(size=shape).astype(np.float32) for name, shape in shapes.items()})
    RunDirectory(path).begin({"settings": dataclasses.asdict(settings)})
    by_collection = collections(settings.trace(), params)
    others = {name: x for name, x in by_collection.items() if name != "params"}
    state = TrainState(jnp.int32(9), by_collection["params"], (), others)
    if ema_decay:
        raw = jax.tree.map(np.zeros_like, by_collection)
        state = TrainState(jnp.int32(9), raw["params"], (), {"batch_stats": raw["batch_stats"]}, ema=by_collection)
    Checkpoints(path / "checkpoints", keep=2).save(9, state)
    again = weights.load(path)
    assert again.arch.norm == "batch" and again.variables.keys() == {"params", "batch_stats"}
    assert_same_params(again.params, params)


def test_preprocessing_is_that_of_training(run):
    path, settings, _ = run
    picture = images.Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    ours = images.preprocess(picture, weights.load(path).preprocessing)
    image = sources._resize(np.asarray(picture)[None, :, :, None], settings.data.image_size)
    theirs = augment.normalize(image, settings.data.mean, settings.data.std)
    np.testing.assert_allclose(ours, theirs[0], atol=1e-6)


def test_a_run_survives_conversion(run, tmp_path):
    first = weights.load(run[0])
    weights.save(tmp_path / "w.safetensors", first)
    again = weights.load(tmp_path / "w.safetensors")
    assert_same_params(again.params, first.params)
    assert (again.arch, again.preprocessing) == (first.arch, first.preprocessing)


def test_whether_photographs_were_turned_is_recorded_with_the_weights(run, tmp_path):
    path = run[0]
    description = json.loads((path / "run.json").read_text())
    for recorded, expected in (
        (True, True),
        (False, False),
        (None, False),
    ):  # None: before there was this
        description["settings"]["data"]["exif_orientation"] = recorded
        if recorded is None:
            del description["settings"]["data"]["exif_orientation"]
        (path / "run.json").write_text(json.dumps(description))
        weights.save(tmp_path / "w.safetensors", weights.load(path))
        assert weights.load(tmp_path / "w.safetensors").preprocessing.exif_orientation is expected


def test_weights_that_an_earlier_version_wrote_turn_nothing():
    old = OLD_FILES / "2026_11_before_the_library"
    for name in ("complex.safetensors", "torchvision_layout.safetensors", "workdir/bypass=complex,seed=0"):
        assert weights.load(old / name).preprocessing.exif_orientation is False


def test_a_damaged_checkpoint_is_passed_over_but_left_alone(run):
    path = run[0]
    (path / "checkpoints/7.safetensors").write_bytes(b"\0")
    before = fingerprint(path)
    assert weights.load(path).provenance["step"] == "3"
    assert fingerprint(path) == before


def remark_on(path):
    return run_directory.remark(weights.load(path).provenance)


def test_weights_with_which_a_run_did_not_end_are_remarked_on(run):
    path = run[0]
    directory = RunDirectory(path)
    for status in ("done", "stalled"):
        directory.write_status(status)
        assert remark_on(path) == ""
    directory.write_status("preempted")
    assert remark_on(path) == "the weights are of step 7; the run's status was preempted"
    (path / "status.json").write_text("{")
    assert remark_on(path) == "the weights are of step 7; the run's status was unknown"
    directory.write_status("done")
    (path / "checkpoints/7.safetensors").write_bytes(b"\0")
    assert remark_on(path) == "the weights are of step 3; newer checkpoints were unreadable: 7"


def test_the_remark_is_a_line_of_every_command_and_stays_with_what_is_made_of_the_run(run, tmp_path, capsys):
    RunDirectory(run[0]).write_status("running")
    copy = tmp_path / "copy.safetensors"
    assert main(["convert", str(run[0]), str(copy)]) == 0
    assert f"note: {run[0]}: the weights are of step 7; the run's status was running\n" in capsys.readouterr().err
    assert main(["export", str(copy), str(tmp_path / "out"), "--format", "hub"]) == 0
    assert f"note: {copy}: the weights are of step 7; the run's status was running\n" in capsys.readouterr().err


def test_what_is_no_run_is_refused(run, tmp_path):
    path = run[0]
    with pytest.raises(UserError, match="records its own architecture"):
        weights.load(path, bypass="simple")
    (path / "checkpoints").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no checkpoints"):
        weights.load(path)
    (path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no readable checkpoint"):
        weights.load(path)
    huge = (path / "run.json").read_text().replace('"width": 0.5', '"width": 1e308')
    assert "1e308" in huge
    for text in ("{", "[]", "{}", '{"settings": {"seed": 0}}', "[" * 9999, huge):
        (path / "run.json").write_text(text)
        with pytest.raises(UserError) as caught:
            weights.load(path)
        assert "\n" not in str(caught.value)


def test_images_with_other_channels_are_refused(finished):
    data = dataclasses.replace(finished[1].data, channels=2)
    with pytest.raises(UserError, match="channels"):
        run_directory.preprocessing(data)


def test_every_setting_of_the_evaluation_is_in_the_preprocessing(finished):
    data = dataclasses.replace(finished[1].data, channels=3, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), eval_resize=24)
    expected = weights.Preprocessing(
        "training", 16, "squash", 16, "RGB", 1 / 255, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), data.exif_orientation
    )
    assert run_directory.preprocessing(dataclasses.replace(data, crop="whole")) == expected
    cut = run_directory.preprocessing(dataclasses.replace(data, crop="random_resized"))
    assert cut == dataclasses.replace(expected, resize=24, mode="short_side")


@pytest.mark.parametrize(
    ("recorded", "labels"),
    [
        (list("abcdefghij"), tuple("abcdefghij")),
        (list("abc"), ()),
        ([*"abcdefghi", 9], ()),
        ("abcdefghij", ()),
        (None, ()),
    ],
)
def test_class_names_are_the_runs_where_it_has_one_for_each_class(run, recorded, labels):
    description = json.loads((run[0] / "run.json").read_text())
    description["dataset"] = {"class_names": recorded}
    (run[0] / "run.json").write_text(json.dumps(description))
    assert weights.load(run[0]).labels == labels


def test_whence_it_comes_is_recorded_as_far_as_it_is_text(run):
    description = json.loads((run[0] / "run.json").read_text()) | {"git": 7}
    (run[0] / "run.json").write_text(json.dumps(description))
    provenance = weights.load(run[0]).provenance
    assert (provenance["preset"], provenance["dataset"]) == ("digits", "digits") and "git" not in provenance


def test_a_checkpoint_of_another_network_is_refused(run):
    description = (run[0] / "run.json").read_text()
    (run[0] / "run.json").write_text(description.replace('"width": 0.5', '"width": 0.25'))
    with pytest.raises(UserError, match="does not fit the settings in run"):
        weights.load(run[0])


def test_a_run_that_was_resumed_a_hundred_times_can_be_read(run):
    path, settings, _ = run
    names = [f"n{number:08}" for number in range(10)]
    described = {"settings": dataclasses.asdict(settings), "dataset": {"class_names": names * 100}}
    for _ in range(100):
        RunDirectory(path).begin(described)
    assert (path / "run.json").stat().st_size < 1_000_000
    starts = json.loads((path / "run.json").read_text())["earlier_starts"]
    assert len(starts) == 100 and not any("class_names" in start.get("dataset", {}) for start in starts)
    assert weights.load(path).provenance["step"] == "7"


def test_too_large_a_description_is_not_read(run):
    description = run[0] / "run.json"
    description.write_text(description.read_text() + " " * run_directory.MAX_RUN_JSON)
    with pytest.raises(UserError, match=r"no readable run\.json"):
        weights.load(run[0])
