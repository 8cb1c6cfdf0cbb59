"""A process is killed at any moment; a checkpoint is damaged while none runs."""

import json
import os
import random
import shutil
import time

import pytest
from damage import cut_off, empty, flip_a_bit
from trainings import ENVIRONMENT, RUN, assert_same, finish, kill, launch, newest, status, wait_until

from squeezenet_jax.runs import checkpoint

# Python imports it at its start. A process that saves then dies when its file is whole, but has not its name yet.
DIES_IN_A_SAVE = """
import os, signal, sys
left = int(os.environ.get("DIES_IN_SAVE", 0))
def look(event, args):
    global left
    if event == "os.rename" and "/checkpoints/." in os.fsdecode(args[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(look)
"""


@pytest.mark.slow
@pytest.mark.long
def test_a_run_that_was_killed_twenty_times_ends_as_if_it_had_not_been(tmp_path, digits, start):
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(DIES_IN_A_SAVE)
    hooked = ENVIRONMENT | {"PYTHONPATH": str(tmp_path / "hook")}
    rng = random.Random(0)
    moments = ["start"] * 6 + ["steps"] * 8 + ["save"] * 6
    rng.shuffle(moments)
    run = tmp_path / RUN
    checkpoints = run / "checkpoints"

    def scratch():
        return {name for name in os.listdir(checkpoints) if name.startswith(".")} if checkpoints.exists() else set()

    for moment in moments:
        before, left = newest(run), scratch()
        save = {"DIES_IN_SAVE": str(rng.randrange(1, 4))} if moment == "save" else {}
        process = start(tmp_path, environment=hooked | save)
        if moment == "start":
            end = time.monotonic() + rng.uniform(0, 4)
            wait_until(lambda end=end, before=before: time.monotonic() > end or newest(run) > before, process)
        elif moment == "steps":
            wanted = before + 5 * rng.randrange(1, 3)
            wait_until(lambda wanted=wanted: newest(run) >= wanted, process)
            time.sleep(rng.uniform(0, 0.02))
        else:
            process.wait(timeout=120)
        kill(process)
        assert moment != "save" or scratch() - left
        assert status(run) == "running" if (run / "status.json").exists() else moment == "start"
    stdout, _ = finish(start(tmp_path))
    assert "resumed at step" in stdout and "unreadable" not in stdout
    assert_same(run, digits)
    assert len(json.loads((run / "run.json").read_text())["earlier_starts"]) >= 14


@pytest.mark.slow
@pytest.mark.long
def test_damaged_checkpoints_are_named_moved_aside_and_made_again(tmp_path, digits, start):
    process = start(tmp_path / "runs", train__keep_checkpoints=3)
    run = tmp_path / "runs" / RUN
    wait_until(lambda: newest(run) >= 50, process)
    kill(process)
    saved = checkpoint.steps(run / "checkpoints")[-3:]
    for damaged in (2, 3):  # the third is whole; none is
        workdir = tmp_path / str(damaged)
        shutil.copytree(tmp_path / "runs", workdir)
        checkpoints = workdir / RUN / "checkpoints"
        for step, spoil in zip(reversed(saved), (cut_off, flip_a_bit, empty)[:damaged], strict=False):
            spoil(checkpoints / f"{step}.safetensors")
        gone = [step for step in checkpoint.steps(checkpoints) if step < saved[0]]  # killed before it was removed
        for step in gone:
            (checkpoints / f"{step}.safetensors").unlink()
        done = launch(workdir, train__keep_checkpoints=3)
        assert done.returncode == 0, done.stderr
        for step in saved[-damaged:]:
            assert f"checkpoint {step} is unreadable" in done.stdout
            assert (checkpoints / f"{step}.unreadable").is_file()
        assert (f"resumed at step {saved[0]}" if damaged == 2 else "started") in done.stdout
        assert done.stdout.count("resumed at") == (damaged == 2)
        assert_same(workdir / RUN, digits)
