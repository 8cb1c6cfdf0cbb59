"""Buckets of real servers on loopback: conditions, leases, the order of what goes up, a network that fails."""

import json
import os
import threading
import time

import pytest

pytest.importorskip("google.cloud.storage")
pytest.importorskip("boto3")
pytest.importorskip("moto")
pytest.importorskip("gcp_storage_emulator")

from store_servers import BUCKET, Store, reached

from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.system import storage
from squeezenet_jax.system.errors import TryAgain, UserError
from squeezenet_jax.system.storage import buckets, lease, uploads


@pytest.fixture(scope="module", params=["gs", "s3"])
def store(request, tmp_path_factory):
    """A server, and this process's environment leading to it."""
    with reached(request.param, tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture
def bucket(store):
    return buckets.connect(store.scheme, BUCKET)


@pytest.mark.parametrize("size", [1, 9 << 20])  # Google's client sends what is larger than 8 MiB in pieces
def test_a_write_with_a_condition_is_made_by_one_of_two(bucket, size):
    assert bucket.entries("a/") == {}
    first = bucket.write("a/x", b"1" * size, expected=buckets.ABSENT)
    with pytest.raises(buckets.Conflict):
        bucket.write("a/x", b"2" * size, expected=buckets.ABSENT)
    second = bucket.write("a/x", b"3" * size, expected=first)
    with pytest.raises(buckets.Conflict):
        bucket.write("a/x", b"4" * size, expected=first)
    assert bucket.read("a/x") == (b"3" * size, second)
    assert {name: entry.size for name, entry in bucket.entries("a/").items()} == {"a/x": size}
    bucket.delete("a/x")
    bucket.delete("a/x")
    with pytest.raises(FileNotFoundError):
        bucket.read("a/x")


def test_a_download_that_was_cut_short_is_tried_again(monkeypatch, bucket):
    if bucket.scheme != "gs":
        pytest.skip("what Google's client raises")
    from types import SimpleNamespace

    from google.cloud.storage.exceptions import DataCorruption

    found = iter([DataCorruption(SimpleNamespace(status_code=200), "checksum mismatch"), (b"x", "1")])

    def read(key):
        result = next(found)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(bucket, "_read", read)
    assert bucket.read("a") == (b"x", "1")


def test_a_bucket_that_is_not_there_is_refused_in_one_line(store):
    with pytest.raises(UserError, match="no such bucket"):
        buckets.connect(store.scheme, "another-bucket").write("x", b"")


def test_a_run_goes_up_as_it_is_written_and_comes_back_elsewhere(store, bucket):
    run = RunDirectory(storage.expand(f"{store.root}/run/seed=0"))
    with run.lock() as holder:
        assert holder is None
        run.begin({"settings": {}})
        run.append_metrics({"step": 1})
        run.append_metrics({"step": 2})  # waits
        storage.drain()
        assert bucket.read("run/seed=0/metrics.jsonl")[0].count(b"\n") == 2
        (run.path / "checkpoints").mkdir()
        run.write_status("done", f"see {run.path}/x")
    assert json.loads(bucket.read("run/seed=0/status.json")[0])["message"] == f"see {store.root}/run/seed=0/x"
    copy = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    assert copy.keys() == {"run.json", "metrics.jsonl", "status.json"}
    for path in run.path.iterdir():
        path.unlink() if path.is_file() else path.rmdir()
    (run.path / "status.json").write_text("of an earlier moment")
    (run.path / "gone").write_text("")
    with run.lock():
        assert {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == copy
    storage.expand(f"{store.root}/run/seed=0/x")
    assert storage.named(f"{run.path}/report.html") == f"{store.root}/run/seed=0/report.html"


def test_a_lease_is_one_processes_until_it_is_not_renewed(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lease, "EXPIRY", 1.0)
    monkeypatch.setattr(lease, "RENEWAL", 0.1)
    monkeypatch.setattr(lease, "LOOKS", 0.05)
    first, second = (lease.Lease(bucket, "leased/lock") for _ in range(2))
    monkeypatch.setattr(lease, "_is_free", lambda content: not content.get("holder"))  # as on two machines
    assert first.acquire() is None
    assert lease.is_held(bucket, "leased/lock")
    assert second.acquire() == f"{os.uname().nodename}, process {os.getpid()}"
    assert "looking whether it is still there" in capsys.readouterr().err
    first._ended.set()  # stopped: it renews nothing
    time.sleep(0.3)
    assert second.acquire() is None
    with pytest.raises(TryAgain, match=r"leased/lock: the lease of this process ended and .* has it now"):
        first._renewed -= 10
        first.check()
    second.check()
    second.release()
    assert not lease.is_held(bucket, "leased/lock")
    first.release()  # changes nothing: it is not its own
    assert lease.Lease(bucket, "leased/lock").acquire() is None


def test_a_process_that_was_stopped_in_the_middle_of_a_write_replaces_nothing_of_the_next_holders(bucket, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRY", 0.5)
    monkeypatch.setattr(lease, "LOOKS", 0.05)
    first, second = (lease.Lease(bucket, "fenced/lock") for _ in range(2))
    monkeypatch.setattr(lease, "_is_free", lambda content: not content.get("holder"))  # as on two machines
    assert first.acquire() is None
    first.write("fenced/log", b"1")
    first._ended.set()
    assert second.acquire() is None
    second.write("fenced/log", b"1, 2, 3")
    second.write("fenced/result", b"3")
    monkeypatch.setattr(first, "check", lambda: None)  # it had looked before it was stopped
    for key in ("fenced/log", "fenced/result"):
        with pytest.raises(TryAgain, match=r"fenced/lock: the lease of this process ended and .* has it now"):
            first.write(key, b"1, 2")
    assert bucket.read("fenced/log")[0] == b"1, 2, 3" and bucket.read("fenced/result")[0] == b"3"
    second.write("fenced/log", b"1, 2, 3, 4")
    second.release()


def test_who_holds_a_lease_writes_whatever_became_of_the_object(bucket, monkeypatch):
    held = lease.Lease(bucket, "kept/lock")
    assert held.acquire() is None
    held.write("kept/log", b"1")
    bucket.write("kept/log", b"a person's")
    held.write("kept/log", b"2")
    bucket.delete("kept/log")
    held.write("kept/log", b"3")
    assert bucket.read("kept/log")[0] == b"3"
    lost = bucket.write  # the write succeeds, its answer does not arrive, and it is tried again

    def write(key, content, expected=None):
        lost(key, content, expected)
        monkeypatch.undo()
        return lost(key, content, expected)

    monkeypatch.setattr(bucket, "write", write)
    held.write("kept/log", b"4")
    held.write("kept/log", b"5")
    assert bucket.read("kept/log")[0] == b"5"
    held.delete("kept/log")
    held.write("kept/log", b"6")
    assert bucket.read("kept/log")[0] == b"6"
    held.release()


def test_what_a_process_of_this_machine_left_when_it_was_killed_is_free_at_once(bucket):
    gone = lease._this_process() | {"holder": "x", "process": 2**22 + 1}
    assert lease._is_free(gone)
    assert not lease._is_free(gone | {"host": "another"})
    assert not lease._is_free(gone | {"process": os.getppid()})


def test_a_network_that_fails_for_a_while_delays_and_one_that_fails_for_long_ends_in_one_line(tmp_path, monkeypatch):
    failing = Store("gs", tmp_path / "failing")  # its objects survive
    for name, value in failing.environment.items():
        monkeypatch.setenv(name, value)
    buckets.connect.cache_clear()
    try:
        path = storage.expand(f"{failing.root}/failing/x")
        bucket = buckets.connect("gs", BUCKET)
        bucket.write("failing/x", b"1")
        failing.kill()
        threading.Timer(2.0, failing.start).start()
        bucket.write("failing/x", b"2")
        assert bucket.read("failing/x")[0] == b"2"
        failing.kill()
        monkeypatch.setattr(buckets, "PATIENCE", 0.5)
        path.write_bytes(b"3")
        with pytest.raises(
            TryAgain, match=r"^gs://squeeze-bucket/failing/x: cannot be reached for .*; the same command"
        ):
            storage.saved(path)
        monkeypatch.setattr(buckets, "PATIENCE", 30.0)
        bucket._failing = (time.monotonic() - 30, time.monotonic())
        began = time.monotonic()
        with pytest.raises(TryAgain):  # of the same outage: its patience is over
            bucket.entries("failing/")
        assert time.monotonic() - began < 10
        with pytest.raises(TryAgain):  # nothing goes up any more: the order would have a hole
            storage.saved(path)
    finally:
        failing.kill()
        uploads._queue.clear()
        buckets.connect.cache_clear()
