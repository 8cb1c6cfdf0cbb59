"""Batches do not depend on who makes them: threads or processes, how many, and whether they are killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from picture_folders import CROPS, assert_same_batches, batches, makers, settings_for, spoil

from squeezenet_jax.data import loader, sources
from squeezenet_jax.data.batches import TrainBatches, in_parts
from squeezenet_jax.data.loader import Loader
from squeezenet_jax.data.worker import Worker

LARGE = 150_000_000  # bytes; a fraction of a second in a pipe


@pytest.mark.parametrize("workers", [0, 1, 2], ids=["threads", "a process", "processes"])
def test_batches_do_not_depend_on_who_makes_them(pictures, workers):
    settings = settings_for(pictures, **CROPS)
    assert_same_batches(batches(settings), batches(settings, workers))


@pytest.mark.parametrize("workers", [0, 2], ids=["threads", "processes"])
def test_batches_do_not_depend_on_how_many_share_one(pictures, workers, monkeypatch):
    spoil(pictures)
    settings = settings_for(pictures, **CROPS)
    train = TrainBatches(sources.load(settings.data, "train_split"), 13, seed=3, rows=(2, 13))
    monkeypatch.setattr("squeezenet_jax.data.batches.PART_ROWS", 3)
    makers = in_parts(train, 99)
    notices, again = [], []
    assert [maker.__self__.rows for maker in makers] == [(2, 5), (5, 9), (9, 13)]
    with Loader({"train": makers}, workers, notices.append) as loader:
        shared = list(loader.stream("train", range(2, 9)))
    with Loader({"train": [train.batch_at]}, None, again.append) as loader:
        assert_same_batches(shared, loader.stream("train", range(2, 9)))
    assert notices == again and len(notices) == 3


def test_small_batches_are_not_shared(pictures):
    train = TrainBatches(sources.load(settings_for(pictures).data, "train_split"), 127, seed=3)
    assert len(in_parts(train, 8)) == 1
    assert len(in_parts(train, 1)) == 1


def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(pictures):
    settings = settings_for(pictures, **CROPS)
    expected = batches(settings)[:7]
    notices, got = [], []
    with Loader(makers(settings), 2, notices.append) as loader:
        for number, batch in enumerate(loader.stream("train", range(2, 9))):
            got.append(batch)
            if number == 2:
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
                time.sleep(0.2)
    assert_same_batches(got, expected)
    assert notices == ["a worker process for data died; starting another one"]


def test_workers_that_keep_dying_end_the_run(pictures):
    with Loader({"train": [os._exit]}, 1, lambda text: None) as loader, pytest.raises(RuntimeError, match="3 times"):
        next(loader.stream("train", [1]))


def run_script(pictures, lines):
    """A process that has `loader`, with two workers, and `settings`; and runs these lines."""
    script = f"""
import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
import multiprocessing, os, signal, time, picture_folders
from squeezenet_jax.data.loader import Loader
settings = picture_folders.settings_for({str(pictures)!r}, **picture_folders.CROPS)
if __name__ == "__main__":
    loader = Loader(picture_folders.makers(settings), 2, print)
{textwrap.indent(textwrap.dedent(lines), "    ")}
"""
    path = pictures.parent / "script.py"
    path.write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120, env=environment)


def test_workers_end_with_the_process_that_started_them(pictures):
    done = run_script(
        pictures,
        """
        next(loader.stream("train", [0, 1, 2]))
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    workers = [int(pid) for pid in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and len(workers) == 2, done.stderr
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("which", [0, 1])
def test_one_of_two_idle_workers_is_killed(pictures, which):
    """With a pipe for both, one of them holds its lock and the other one would wait for it for ever."""
    done = run_script(
        pictures,
        f"""
        with loader:
            batches = loader.stream("train", range(8))
            next(batches)
            time.sleep(1)
            os.kill(sorted(child.pid for child in multiprocessing.active_children())[{which}], signal.SIGKILL)
            print(len(list(batches)))
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["a worker process for data died; starting another one", "7"]


def large_batch(position):
    return {"image": np.full(LARGE, position, np.uint8), "unreadable": []}


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2])
def test_a_worker_is_killed_while_it_hands_over_a_batch(delay):
    notices = []
    with Loader({"train": [large_batch]}, 1, notices.append) as loader:
        batches = loader.stream("train", range(4))
        first = next(batches)["image"][0]
        time.sleep(delay)  # handing over the second one takes about 0.3 s
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        assert [first, *(batch["image"][0] for batch in batches)] == [0, 1, 2, 3]
    assert notices == ["a worker process for data died; starting another one"]


def started(makers):
    """(worker, its process)."""
    before = multiprocessing.active_children()
    made = Worker(makers)
    (process,) = set(multiprocessing.active_children()) - set(before)
    return made, process


def test_signals_to_the_whole_group_do_not_end_a_worker_not_even_as_it_starts():
    made, process = started({"train": [len_of]})
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process.pid, number)
    assert made.make("train", 0, 3) == {"n": 3}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process.pid, number)
    assert made.make("train", 0, 4) == {"n": 4}
    made.kill()
    process.join()


def len_of(position):
    return {"n": position}


def test_what_a_maker_raises_reaches_the_one_who_asked(pictures):
    with (
        Loader({"train": [int.bit_length]}, 1, print) as loader,
        pytest.raises(TypeError, match="bit_length") as raised,
    ):
        next(loader.stream("train", ["position"]))
    assert "Traceback" in raised.value.__notes__[0]


def test_the_loader_says_how_long_it_waited():
    def slow(position):
        time.sleep(0.05)
        return {"position": position}

    with Loader({"train": [slow]}, None, print) as loader:
        assert [batch["position"] for batch in loader.stream("train", [3, 1, 2])] == [3, 1, 2]
        assert 0.15 <= loader.waited < 2
    with Loader({"train": [slow]}, 0, print) as loader:
        for _ in loader.stream("train", range(5)):
            time.sleep(0.12)  # meanwhile the next ones are made
        assert loader.waited < 0.15


def test_threads_are_as_many_as_cores():
    assert loader.parallelism(0) == len(os.sched_getaffinity(0))
