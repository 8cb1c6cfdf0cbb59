"""Two real processes that train together (jax.distributed over gloo) are one process, and stop at one step."""

import json
import signal
import time

import pytest
from several_processes import assert_same, finish, join_flags, nothing_is_left, results, start, start_two

from squeezenet_jax.runs import checkpoint, predictions
from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.system import processes
from squeezenet_jax.system.errors import UserError

__all__ = ["nothing_is_left"]  # a fixture that every test here uses


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone")
    finish(start(workdir, devices=8))
    return results(workdir)


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_train_like_one(tmp_path, alone):
    finish(*start_two(tmp_path / "two"))
    assert_same(results(tmp_path / "two"), alone)
    assert not (tmp_path / "unused").exists()
    kept, (metrics, _) = predictions.load(tmp_path / "two" / "bypass=simple,seed=1"), alone
    assert kept.index.tolist() == list(range(50))
    assert kept.top1.mean() == metrics[-1]["top1"]
    # As if a stop had cut the last evaluation short: the next start makes it.
    directory = RunDirectory(tmp_path / "two" / "bypass=simple,seed=1")
    *lines, _ = (directory.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory.path / "metrics.jsonl").write_text("".join(lines))
    directory.write_status("preempted")
    finish(*start_two(tmp_path / "two"))
    assert_same(results(tmp_path / "two"), alone)


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_with_batch_norm_train_like_one(tmp_path):
    # A low rate and few steps: so small a network with batch norm makes much of rounding.
    overrides = {"model.norm": "batch", "optimizer.peak_lr": 0.001, "train.epochs": 1.0}
    finish(start(tmp_path / "alone", devices=8, **overrides))
    finish(*start_two(tmp_path / "two", **overrides))
    found, expected = results(tmp_path / "two"), results(tmp_path / "alone")
    # Of gradients that nearly cancel, rounding makes several percent; the statistics of half a batch would show in all.
    assert_same(found, expected, total_steps=6, rtol=1e-4, optimizer=False)
    assert any("batch_stats" in name for name in found[1][1])


@pytest.mark.slow
@pytest.mark.long
def test_a_signal_to_one_of_two_stops_both_at_the_same_step_and_they_resume(tmp_path):
    # A SIGTERM may be heard a second late, some tens of steps: long enough not to end before.
    overrides = {"train.epochs": 20.0, "train.eval_every_epochs": 10.0, "train.checkpoint_every_steps": 5}
    overrides["model.kernel_init"] = "he_uniform"
    finish(start(tmp_path / "alone", devices=2, **overrides))
    run = tmp_path / "two" / "bypass=simple,seed=1"
    stopped_at = 0
    for number, to in ((signal.SIGTERM, 1), (signal.SIGINT, 0)):
        started = start_two(tmp_path / "two", devices=1, **overrides)
        deadline = time.monotonic() + 200
        while max(checkpoint.steps(run / "checkpoints"), default=0) <= stopped_at:
            assert time.monotonic() < deadline
            assert [process.poll() for process in started] == [None, None]
            time.sleep(0.01)
        started[to].send_signal(number)
        for process in started:
            process.communicate(timeout=100)
        assert [process.returncode for process in started] == [75, 75]
        assert RunDirectory(run).status == "preempted"
        newest = checkpoint.steps(run / "checkpoints")[-1]
        assert stopped_at < newest < 120
        stopped_at = newest
    finish(*start_two(tmp_path / "two", devices=1, **overrides))
    (metrics, state), (expected_metrics, expected_state) = results(tmp_path / "two"), results(tmp_path / "alone")
    evaluations, expected = ([r for r in m if r["split"] == "eval"] for m in (metrics, expected_metrics))
    assert_same((evaluations, state), (expected, expected_state), total_steps=120)
    steps = [r["step"] for r in metrics if r["split"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == 120


def test_one_process_is_the_main_one_and_agrees_with_itself():
    assert processes.is_main() and not processes.several()
    assert processes.from_main({"a": [1]}) == {"a": [1]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", None, 0), "--num-processes: is missing; all of --coordinator, --num-processes, --process-id"),
        (("host", 2, 0), "--coordinator: host is not allowed; it must be host:port"),
        (("host:1", 2, 2), "--process-id: 2 is not allowed; it must be from 0 to 1"),
        (("host:1", 0, 0), "--num-processes: 0 is not allowed"),
    ],
)
def test_wrong_flags_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        processes.join(*given)


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        (SLURM | {"SLURM_NTASKS": "1"}, False),  # a task of the array that `--launcher slurm` submits
        (SLURM | {"SLURM_NTASKS": "4"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, False),  # in the batch script, outside srun
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_a_cluster_is_detected(environ, expected):
    assert processes.detected(environ) is expected
    assert processes.started_together(environ) is (expected and "JOB_COMPLETION_INDEX" not in environ)


@pytest.mark.slow
@pytest.mark.long
def test_a_single_process_that_joined_still_hears_a_signal(tmp_path):
    workdir = tmp_path / "one"
    process = start(
        workdir, *join_flags(1), "--process-id=0", devices=1, train__epochs=200.0, train__checkpoint_every_steps=5
    )
    deadline = time.monotonic() + 200
    while not checkpoint.steps(workdir / "bypass=simple,seed=1/checkpoints"):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    assert process.returncode == 75
    status = json.loads((workdir / "bypass=simple,seed=1/status.json").read_text())["status"]
    assert status == "preempted"


def test_processes_that_were_told_different_things_are_refused(tmp_path):
    together = join_flags(2)
    first = start(tmp_path / "a", *together, "--process-id=0", devices=2)
    second = start(tmp_path / "b", *together, "--process-id=1", devices=2, optimizer__peak_lr=0.01)
    outputs = [process.communicate(timeout=200) for process in (first, second)]
    assert second.returncode == 2
    assert "the configuration: process 1 has" in outputs[1][1]
    assert first.returncode != 0
