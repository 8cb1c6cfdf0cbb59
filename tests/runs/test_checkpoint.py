"""A checkpoint is read back to the bit, or it is noticed that it cannot be."""

import numpy as np
import pytest
import safetensors.numpy
from damage import flip_a_bit

from squeezenet_jax.runs import checkpoint
from squeezenet_jax.runs.checkpoint import Checkpoints, Unreadable
from squeezenet_jax.system.errors import UserError


def state(step):
    kernel = np.random.default_rng(step).normal(size=(2, 3)).astype(np.float32)
    return {"params": {"fire2": {"kernel": kernel}, "conv1": {"bias": np.zeros(6, np.float32)}}, "step": np.int32(step)}


def saved(path, *numbers, keep=2):
    checkpoints = Checkpoints(path, keep=keep)
    for step in numbers:
        checkpoints.save(step, state(step))
    return checkpoints


def assert_is(restored, step):
    expected = state(step)
    for layer, name in (("fire2", "kernel"), ("conv1", "bias")):
        np.testing.assert_array_equal(restored["params"][layer][name], expected["params"][layer][name])
    assert restored["step"] == step and restored["step"].dtype == np.int32


def test_the_newest_few_are_kept_by_number_and_the_newest_is_restored(tmp_path):
    checkpoints = saved(tmp_path, 8, 9, 10, 11, keep=3)
    assert checkpoint.steps(tmp_path) == [9, 10, 11]  # "9" comes behind "11"
    assert_is(checkpoints.restore_newest(state(0), print), 11)
    assert checkpoint.read_newest(tmp_path)[0] == 11


def test_without_a_checkpoint_there_is_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path / "none", keep=2).restore_newest(state(0), print) is None
    assert checkpoint.read_newest(tmp_path / "none") is None


def test_a_damaged_one_is_moved_aside_once_and_the_one_before_is_restored(tmp_path):
    checkpoints, notices = saved(tmp_path, 4, 12), []
    flip_a_bit(tmp_path / "12.safetensors")
    assert checkpoint.read_newest(tmp_path)[0] == 4
    assert checkpoint.steps(tmp_path) == [4, 12]  # only a run that goes on moves something
    for _ in range(2):
        assert_is(checkpoints.restore_newest(state(0), notices.append), 4)
    assert len(notices) == 1 and "checkpoint 12 is unreadable" in notices[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["12.unreadable", "4.safetensors"]


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays | {"step": np.asarray(arrays["step"] + 1)},
        lambda arrays: arrays | {"step": arrays["step"].view(np.uint32)},
        lambda arrays: arrays | {"params/fire2/kernel": arrays["params/fire2/kernel"].reshape(3, 2)},
        lambda arrays: {name.replace("fire2", "fire3"): array for name, array in arrays.items()},
        lambda arrays: {name: array for name, array in arrays.items() if name != "step"},
    ],
    ids=["value", "type", "shape", "name", "missing"],
)
def test_whatever_is_changed_does_not_match_the_digest(tmp_path, change):
    saved(tmp_path, 1)
    path = tmp_path / "1.safetensors"
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    safetensors.numpy.save_file(change(checkpoint.read(path)), path, metadata)
    with pytest.raises(Unreadable, match="digest"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ({"params": {"fire2": {"kernel": np.zeros((3, 2), np.float32)}}}, "params/conv1/bias"),
        (state(0) | {"step": np.int64(0)}, "step"),
        (state(0) | {"momentum": np.zeros(1, np.float32)}, "momentum"),
    ],
    ids=["layers", "type", "more"],
)
def test_a_sound_one_of_another_network_is_refused_and_stays(tmp_path, other, differs):
    checkpoints = saved(tmp_path, 1)
    with pytest.raises(UserError, match=f"is of another network or program version; {differs} differs"):
        checkpoints.restore_newest(other, print)
    assert checkpoint.steps(tmp_path) == [1]


def test_what_a_kill_left_half_written_is_removed_by_the_next_start(tmp_path):
    checkpoints = saved(tmp_path, 1)
    before = sorted(tmp_path.iterdir())
    (tmp_path / ".2.safetensors.some-host.4711").write_bytes(b"half")
    assert_is(checkpoints.restore_newest(state(0), print), 1)
    assert sorted(tmp_path.iterdir()) == before
