"""What is read from run directories in the states that they are left in."""

import itertools
import json

import numpy as np
import pytest

from squeezenet_jax.experiment import results
from squeezenet_jax.runs import predictions
from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.training.train import Schedule

SEVEN_AND_A_HALF = (2.5, 3.0)  # steps, which a run rounds


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch"),
    [
        SEVEN_AND_A_HALF,
        (50.0, 1433 / 20),
        (15.0, 50_000 / 96),
        (1.1, 48_000 / 128),
        *itertools.product([0.01, 0.5, 2.0, 2.5, 7.3], [1433 / 32, 96 / 16, 7 / 3, 1 / 32]),
    ],
)
def test_the_final_evaluation_is_the_one_of_the_last_step_and_no_earlier_one(tiny, epochs, steps_per_epoch):
    last = Schedule.of(tiny(train__epochs=epochs, optimizer__warmup_epochs=0.0), steps_per_epoch).total_steps
    evaluations = [{"step": step, "epoch": step / steps_per_epoch} for step in range(1, last + 1)]
    assert results.final_evaluation(evaluations, epochs) == evaluations[-1]
    assert results.final_evaluation(evaluations[:-1], epochs) is None


def finished(path, status="done"):
    """A run of the `tiny` settings, 12 steps, as it is when it has ended."""
    directory = RunDirectory(path)
    directory.begin({"dataset": {"splits": {"train": 1433, "test": 364}, "num_classes": 10, "channels": 1}})
    for step, rate in ((4, 30.0), (5, 900.0), (6, 800.0), (8, 700.0), (12, 40.0)):
        directory.append_metrics({"split": "train", "step": step, "epoch": step / 6, "images_per_second": rate})
        if step % 6 == 0:
            at = {"split": "eval", "step": step, "epoch": step / 6}
            directory.append_metrics({**at, "top1": step / 100, "top5": 0.5, "count": 50})
    directory.write_status(status)
    return directory


def read(directory, settings):
    return results.read_run(directory, "bypass=none", {"model.bypass": "none", "seed": 0}, settings, (1, 2))


def test_a_finished_run_has_its_last_evaluation_and_the_speed_of_its_whole_windows(tiny, tmp_path):
    run = read(finished(tmp_path), tiny())
    assert (run.status, run.result["top1"], run.result["images_per_second"]) == ("done", 0.12, 35.0)
    assert run.images == {"train": 96, "eval": 50}
    assert run.overrides == {"model.bypass": "none"}


def test_step_times_are_medians_and_memory_is_the_most_in_use_and_what_is_not_said_is_left_out(tmp_path):
    assert results.speeds([{"step": 4}], 4) == {} == results.speeds([], 4)
    windows = [
        {"step": step, "step_seconds": step / 100, "step_seconds_p90": step / 50, "device_memory_bytes": memory}
        for step, memory in ((4, 100), (8, 300), (9, 900), (12, None), (16, 200))  # that of 9 was cut short
    ]
    assert results.speeds(windows, 4) == {"step_seconds": 0.08, "step_seconds_p90": 0.16, "device_memory_bytes": 300}


def test_the_majority_class_is_that_of_the_evaluated_images(tiny, tmp_path):
    directory = finished(tmp_path)
    for recorded, majority in (
        ({"train": None, "eval": {"majority": 0.95}}, 0.95),
        ({"eval": None}, None),
        (None, None),
    ):
        directory.begin({"labels": recorded})
        assert read(directory, tiny()).majority == majority


def test_the_predictions_are_those_of_the_final_evaluation_or_none(tiny, tmp_path):
    directory = finished(tmp_path)
    assert read(directory, tiny()).predictions is None  # as earlier versions left it
    index, label = np.arange(50), np.zeros(50, int)
    for hits in (7, 6):  # 6 of 50 are its 12 %
        top = np.where(np.arange(50) < hits, 0, 1)[:, None]
        predictions.save(tmp_path, predictions.Predictions(index, label, top, np.zeros(50)))
        assert (read(directory, tiny()).predictions is not None) == (hits == 6)
    assert read(directory, tiny()).predictions.top1.sum() == 6
    (tmp_path / predictions.NAME).write_bytes(b"damaged")
    assert read(directory, tiny()).predictions is None
    assert read(directory, tiny()).result["top1"] == 0.12


def test_speed_is_that_of_all_windows_where_none_is_whole(tiny, tmp_path):
    assert read(finished(tmp_path), tiny(train__log_every_steps=100)).result["images_per_second"] == 700.0


@pytest.mark.parametrize("damage", ["deleted", "empty", "older copy", "cut in a line", "not text"])
def test_a_finished_run_whose_metrics_are_not_whole_has_no_result(tiny, tmp_path, damage):
    metrics = finished(tmp_path).path / "metrics.jsonl"
    content = metrics.read_bytes()
    lines = content.splitlines(keepends=True)
    damaged = {"empty": b"", "older copy": b"".join(lines[:4]), "cut in a line": content[:-9], "not text": b"\xff\x00"}
    metrics.unlink() if damage == "deleted" else metrics.write_bytes(damaged[damage])
    run = read(RunDirectory(tmp_path), tiny())
    assert (run.status, run.result) == ("done", None)


def test_a_run_that_nobody_runs_was_killed(tiny, tmp_path):
    directory = finished(tmp_path, "running")
    assert read(directory, tiny()).status == "killed"
    with directory.lock():
        assert read(directory, tiny()).status == "running"
    assert read(directory, tiny()).status == "killed"


def test_looking_at_a_run_leaves_it_as_it_is(tiny, tmp_path):
    directory = finished(tmp_path, "running")
    with directory.lock():
        before = (tmp_path / "lock").read_text()
        read(directory, tiny())
        assert (tmp_path / "lock").read_text() == before
        with RunDirectory(tmp_path).lock() as holder:
            assert holder == before.strip()


def test_a_run_that_was_not_started_is_missing(tiny, tmp_path):
    run = read(RunDirectory(tmp_path / "none"), tiny())
    assert (run.status, run.result, run.images, run.started) == ("missing", None, {}, {})
    assert run.settings["train.batch_size"] == 16
    json.dumps(dict(run.settings))
    assert not (tmp_path / "none").exists()
