"""A workdir in a bucket, of servers on loopback: kills of the run and of the store, another machine, two starts."""

import json
import os
import random
import signal
import subprocess
import time

import pytest

pytest.importorskip("google.cloud.storage")
pytest.importorskip("boto3")
pytest.importorskip("moto")
pytest.importorskip("gcp_storage_emulator")

import trainings
from store_servers import BUCKET, Store
from trainings import (
    RUN,
    TOTAL_STEPS,
    assert_same,
    descendants,
    finish,
    kill,
    one_line,
    two_at_a_time,
    wait_until,
)

from squeezenet_jax.system import storage
from squeezenet_jax.system.storage import buckets


@pytest.fixture(params=["gs", "s3"])
def store(request, tmp_path, monkeypatch):
    store = Store(request.param, tmp_path / "store")
    environment = {**store.environment, "TMPDIR": str(tmp_path / "scratch")}
    (tmp_path / "scratch").mkdir()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name, value in environment.items():
        monkeypatch.setitem(trainings.ENVIRONMENT, name, value)
    buckets.connect.cache_clear()
    yield store
    store.kill()
    buckets.connect.cache_clear()


def newest(bucket, run=RUN):
    names = bucket.entries(f"runs/{run}/checkpoints/")
    return max((int(name.rpartition("/")[2].partition(".")[0]) for name in names), default=0)


def brought(store, run=RUN):
    """The run as a machine that has never seen it gets it."""
    run = storage.expand(f"{store.root}/runs/{run}")
    storage.fetch(run)
    return run


@pytest.mark.slow
@pytest.mark.long
def test_a_run_in_a_bucket_that_was_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path, digits, start, store):
    rng = random.Random(0)
    moments = ["start"] * 4 + ["steps"] * 8 + ["any"] * 8
    rng.shuffle(moments)
    # Google's emulator answers one request at a time: a killed client or a killed store can block it for minutes.
    moments = moments if store.scheme == "s3" else moments[:4]
    bucket, workdir = buckets.connect(store.scheme, BUCKET), f"{store.root}/runs"
    for moment in moments:
        before = newest(bucket)
        process = start(workdir)
        if moment == "start":
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=rng.uniform(0, 4))
        else:
            wait_until(lambda before=before: newest(bucket) > before, process, pause=0.05)
            time.sleep(rng.uniform(0, 0.02 if moment == "steps" else 0.1))
        kill(process)
    stdout, _ = finish(start(workdir))
    assert "resumed at step" in stdout and "unreadable" not in stdout
    assert f"Report: {workdir}/report.html" in stdout
    assert {"report.html", "report.json"} <= {name.removeprefix("runs/") for name in bucket.entries("runs/report")}
    run = brought(store)
    assert_same(run, digits)
    assert len(json.loads((run / "run.json").read_text())["earlier_starts"]) >= len(moments) // 2
    assert len(os.listdir(tmp_path / "scratch")) == 0  # what the killed ones had copied was removed


@pytest.mark.slow
@pytest.mark.parametrize("store", ["s3"], indirect=True)  # Google's emulator would wait for the one that is stopped
@pytest.mark.long
def test_a_process_that_was_stopped_until_another_had_its_lease_leaves_in_one_line(digits, start, store):
    bucket, workdir = buckets.connect(store.scheme, BUCKET), f"{store.root}/runs"
    first = start(workdir)
    wait_until(lambda: newest(bucket) > 0, first, pause=0.05)
    first.send_signal(signal.SIGSTOP)
    second = start(workdir)  # which waits until nothing has been heard of the first for a minute
    stdout, stderr = finish(second)
    assert f"held by {os.uname().nodename}, process {first.pid}" in stderr and "resumed at step" in stdout
    first.send_signal(signal.SIGCONT)
    _, stderr = first.communicate(timeout=100)
    assert first.returncode == os.EX_TEMPFAIL
    one_line(stderr, f"{workdir}/{RUN}/lock: the lease of this process ended")
    assert newest(bucket) == TOTAL_STEPS
    run = brought(store)
    assert trainings.status(run) == "done"
    assert_same(run, digits)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["s3"], indirect=True)
@pytest.mark.long
def test_of_runs_side_by_side_in_a_bucket_one_is_killed_and_all_end_as_on_a_disk(tmp_path, alone, start, store):
    bucket, workdir = buckets.connect(store.scheme, BUCKET), f"{store.root}/runs"
    first = two_at_a_time(start, workdir)
    wait_until(lambda: newest(bucket) > 0, first, pause=0.05)
    holder = bucket.read(f"runs/{RUN}/lock")[0]
    victim = int(json.loads(holder)["holder"].split()[-1])
    assert victim in descendants(first.pid)
    os.kill(victim, signal.SIGKILL)
    stdout, stderr = first.communicate(timeout=300)
    assert first.returncode == 1, stderr
    assert f"{RUN}: KILLED" in stdout and "1 killed" in stdout
    stdout, _ = finish(two_at_a_time(start, workdir))
    assert "resumed at step" in stdout and stdout.count("already") == len(alone) - 1
    assert f"Report: {workdir}/report.html" in stdout
    assert len(os.listdir(tmp_path / "scratch")) == 0
    for run, expected in alone.items():
        assert_same(brought(store, run), expected, same_windows=False)
