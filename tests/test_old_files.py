"""Files that earlier versions wrote are read for ever; `old_files/README.md` says what they are.

Each test of a kind of file runs over whatever versions have left one.
"""

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from squeezenet_jax import settings, weights
from squeezenet_jax.data import sources
from squeezenet_jax.experiment import sweep
from squeezenet_jax.export import network
from squeezenet_jax.network import architecture
from squeezenet_jax.network.architecture import Architecture
from squeezenet_jax.runs import checkpoint
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.training import augment, objective
from squeezenet_jax.weights.bundle import flatten
from squeezenet_jax.weights.formats import metadata

ROOT, OLD = Path(__file__).parents[1], Path(__file__).parent / "old_files"
FIRST = OLD / "2026_11_before_the_library"
RUNS = sorted(path.parent for path in OLD.glob("*/workdir/*/run.json"))
FILES = [FIRST / "complex.safetensors", FIRST / "torchvision_layout.safetensors"]
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KILLED = "bypass=none,seed=1"


def name(path):
    return path.name


def run_json(run):
    return json.loads((run / "run.json").read_text())


def evaluated(found, data):
    """Loss and accuracies of weights on the examples that the run itself was evaluated on."""
    source = sources.load(data, "eval_split")
    batch = source.read(np.arange(len(source)), None)
    logits = network.from_weights(found).reference(augment.normalize(batch["image"], data.mean, data.std))
    ones = np.ones(len(source), np.int32)
    return objective.means(objective.total([objective.tally(jnp.asarray(logits), batch["label"], ones)]))


@pytest.mark.parametrize("run", RUNS, ids=name)
def test_an_old_run_is_read(run):
    found, recorded = weights.load(run), settings.from_config(run_json(run)["settings"])
    variant = {"bypass": recorded.model.bypass, "stem": "small", "width": 0.125}
    assert found.arch == dataclasses.replace(architecture.build("v1.0", **variant), conv10_relu=False)
    assert (found.num_classes, found.channels, found.preprocessing.crop) == (10, 1, 8)
    if run.name != KILLED:  # its checkpoint is not that of an evaluation
        last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
        result = evaluated(found, recorded.data)
        assert result["loss"] == pytest.approx(last["loss"], rel=1e-5)
        assert {**result, "loss": 0} == {key: last[key] for key in ("top1", "top5", "count")} | {"loss": 0}


def test_an_old_compressed_file_is_read():
    found, same = (weights.load(OLD / "2026_11_compressed" / name) for name in ("tiny.sqz", "tiny.safetensors"))
    assert dataclasses.replace(found, params=same.params).__dict__ == same.__dict__
    ours, theirs = flatten(found.params), flatten(same.params)
    assert list(ours) == list(theirs) and all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def test_old_weights_are_read():
    found, run = weights.load(FIRST / "complex.safetensors"), weights.load(FIRST / "workdir" / "bypass=complex,seed=0")
    assert found.labels == DIGITS
    assert (found.arch, found.preprocessing) == (run.arch, run.preprocessing)
    assert [f.bypass for _, f in found.arch.fires()] == ["conv", "identity"] * 4
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    logits = [network.from_weights(each).reference(image) for each in (found, run)]
    assert np.ptp(logits[0]) > 0
    np.testing.assert_array_equal(*logits)


def test_old_weights_in_torchvisions_layout_are_read():
    path = FIRST / "torchvision_layout.safetensors"
    found, raw = weights.load(path), safetensors.numpy.load_file(path)
    assert (found.labels, found.arch.dropout, found.preprocessing.name) == (("a", "b", "c"), 0.25, "caffe")
    assert found.arch == dataclasses.replace(architecture.build("v1.1", geometry="caffe", width=1 / 32), dropout=0.25)
    np.testing.assert_array_equal(
        found.params["fire9"]["expand3x3"]["kernel"], raw["features.12.expand3x3.weight"].transpose(2, 3, 1, 0)
    )
    image = np.random.default_rng(0).normal(size=(2, 227, 227, 3)).astype(np.float32)
    logits = network.from_weights(found).reference(image)
    assert logits.shape == (2, 3) and np.isfinite(logits).all()


# -- a workdir ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def workdir(tmp_path):
    return Path(shutil.copytree(FIRST / "workdir", tmp_path / "workdir"))


def launch(workdir, *more, only=None):
    """The command that wrote the files, with another workdir."""
    (_, *args) = run_json(FIRST / "workdir" / KILLED)["command"]
    args[args.index("--workdir") + 1] = str(workdir)
    args[args.index("--only") + 1] = only or args[args.index("--only") + 1]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    environment.pop("XLA_FLAGS", None)  # as it was then
    command = [sys.executable, str(ROOT / "launch.py"), *args, *more]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


def test_an_old_workdir_is_reported(workdir):
    result = launch(workdir, "--report")
    assert result.returncode == 0, result.stderr
    rows = {row["name"]: row for row in json.loads((workdir / "report.json").read_text())["rows"]}
    assert {key: row["n"] for key, row in rows.items()} == {"bypass=none": 1, "bypass=simple": 0, "bypass=complex": 1}
    assert (rows["bypass=none"]["top1"]["mean"], rows["bypass=complex"]["top1"]["mean"]) == (0.2, 0.1)
    assert (rows["bypass=none"]["params"], rows["bypass=complex"]["params"]) == (12_354, 17_826)


@pytest.mark.long
@pytest.mark.slow
def test_an_old_run_that_was_killed_goes_on_to_the_bits_of_one_that_was_not(workdir, tmp_path):
    resumed, anew = launch(workdir), launch(tmp_path / "anew", only=KILLED)
    assert (resumed.returncode, anew.returncode) == (0, 0), resumed.stderr + anew.stderr
    assert f"{KILLED}: resumed at step 5" in resumed.stdout

    def checkpoint_of(workdir, step):
        return checkpoint.read(workdir / KILLED / "checkpoints" / f"{step}.safetensors")

    ended, expected = checkpoint_of(workdir, 12), checkpoint.read(FIRST / "none_seed_1_uninterrupted.safetensors")
    assert ended.keys() == expected.keys()
    now, then = checkpoint_of(tmp_path / "anew", 5), checkpoint_of(FIRST / "workdir", 5)
    old_bits = all(np.array_equal(now[key], then[key]) for key in then)
    for key, x in ended.items():  # other versions of jax and other processors round otherwise
        np.testing.assert_allclose(x, expected[key], atol=0 if old_bits else 1e-3, rtol=0, err_msg=key)


# -- fields that came later: what is missing has its default, what is unknown is named ---------------------------------


def optional_fields(kind, value, path=()):
    """(path, default) of every field of a nested value that has a default in the dataclass that it is read into."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, here = hints[field.name], (*path, field.name)
        if field.name not in value:  # it is younger than the file
            continue
        if field.default is not dataclasses.MISSING:
            yield here, field.default
        elif dataclasses.is_dataclass(hint):
            yield from optional_fields(hint, value[field.name], here)
    if kind is Architecture:
        yield from optional_fields(architecture.StemSpec, value["stem"], (*path, "stem"))
        for i, group in enumerate(value["groups"]):
            for j, fire in enumerate(group):
                yield from optional_fields(architecture.FireSpec, fire, (*path, "groups", i, j))


def at(value, path):
    for key in path:
        value = value[key]
    return value


def without(value, *paths):
    value = copy.deepcopy(value)
    for path in paths:
        del at(value, path[:-1])[path[-1]]
    return value


def as_plain(value):
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("run", RUNS, ids=name)
def test_a_run_from_before_a_setting_existed_has_its_default(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    whole, before = run_json(run), weights.load(run)
    recorded = whole["settings"]
    neutral = [path for path, default in optional_fields(settings.Settings, recorded) if at(recorded, path) == default]
    assert len(neutral) > 20
    for paths in (*([path] for path in neutral), neutral):
        (tmp_path / "run/run.json").write_text(json.dumps(whole | {"settings": without(recorded, *paths)}))
        found = weights.load(tmp_path / "run")
        assert (found.arch, found.preprocessing) == (before.arch, before.preprocessing)


def parsed(description):
    return as_plain(dataclasses.asdict(metadata.parse(json.dumps(description))))


def metadata_of(path):
    with safetensors.safe_open(path, "np") as file:
        return json.loads(file.metadata()[metadata.METADATA_KEY])


@pytest.mark.parametrize("path", FILES, ids=name)
def test_weights_from_before_a_field_existed_have_its_default(path, tmp_path):
    whole, tensors, before = metadata_of(path), safetensors.numpy.load_file(path), weights.load(path)
    optional = dict(optional_fields(metadata.Description, whole))
    assert {("architecture", "pool_ceil"), ("architecture", "groups", 0, 0, "bypass"), ("labels",)} <= optional.keys()
    for missing, default in optional.items():
        description, complete = (parsed(each) for each in (without(whole, missing), whole))
        assert at(description, missing) == as_plain(default)
        assert without(description, missing) == without(complete, missing)
    neutral = [missing for missing, default in optional.items() if at(whole, missing) == as_plain(default)]
    text = json.dumps(without(whole, *neutral, ("provenance",)))
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors", {metadata.METADATA_KEY: text})
    found = weights.load(tmp_path / "w.safetensors")
    assert (found.arch, found.preprocessing, found.labels) == (before.arch, before.preprocessing, before.labels)


@pytest.mark.parametrize("path", [("architecture", "stem"), ("architecture", "groups"), ("num_classes",)])
def test_what_has_no_default_must_be_there(path):
    with pytest.raises(UserError, match=rf"metadata: {'.'.join(path)} missing"):
        metadata.parse(json.dumps(without(metadata_of(FILES[0]), path)))


def one_line(caught, *parts):
    (line,) = str(caught.value).splitlines()
    assert all(part in line for part in parts), line


def test_an_unknown_field_of_a_file_is_refused_by_name(workdir, tmp_path):
    run = workdir / KILLED
    record = run_json(run)
    record["settings"]["model"]["widht"] = 2.0
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError) as caught:
        weights.load(run)
    one_line(caught, str(run), '"model.widht"', 'did you mean "model.width"')

    description = metadata_of(FILES[0])
    description["architecture"]["drop_out"] = 0.5
    text = json.dumps(description)
    safetensors.numpy.save_file(
        safetensors.numpy.load_file(FILES[0]), tmp_path / "w.safetensors", {metadata.METADATA_KEY: text}
    )
    with pytest.raises(UserError) as caught:
        weights.load(tmp_path / "w.safetensors")
    one_line(caught, "w.safetensors", '"architecture.drop_out"', 'did you mean "architecture.dropout"')

    manifest = json.loads((workdir / sweep.MANIFEST).read_text())
    manifest["config"]["model.shuffle"] = True
    (workdir / sweep.MANIFEST).write_text(json.dumps(manifest))
    result = launch(workdir, "--report")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "model.shuffle is True there, None here" in line


def test_an_old_workdir_from_before_a_setting_existed_is_reported(workdir):
    manifest = json.loads((workdir / sweep.MANIFEST).read_text())
    config = manifest["config"]
    neutral = [key for key, value in config.items() if value == as_plain(settings.DEFAULTS[key])]
    assert len(neutral) > 20
    manifest["config"] = {key: value for key, value in config.items() if key not in neutral}
    (workdir / sweep.MANIFEST).write_text(json.dumps(manifest))
    assert launch(workdir, "--report").returncode == 0
