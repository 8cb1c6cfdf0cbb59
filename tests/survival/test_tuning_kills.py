"""A tuned sweep is killed during its trials, behind them and in the sweep."""

import json
import subprocess

import pytest
from trainings import ENVIRONMENT, ROOT, RUN, command, kill, metrics, newest, wait_until

TUNED = ("--tune", "--grid=optimizer.peak_lr=0.001,0.004")
TRIALS = [f"tuning/bypass=none,peak_lr={rate},seed=1000000" for rate in ("0.001", "0.004")]


def tuned(workdir):
    return command(workdir, *TUNED, train__epochs=30.0)


def finish(workdir):
    done = subprocess.run(tuned(workdir), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.long
def test_a_tuned_sweep_that_was_killed_chooses_and_ends_as_if_it_had_not_been(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(whole)
    moments = [
        lambda: newest(killed / TRIALS[0]) >= 10,
        lambda: newest(killed / TRIALS[1]) >= 20,
        lambda: (killed / "tuning.json").exists(),
        lambda: newest(killed / RUN) >= 10,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for moment in moments:
        process = subprocess.Popen(tuned(killed), cwd=ROOT, env=ENVIRONMENT, **pipes)
        try:
            wait_until(moment, process)
        finally:
            kill(process)
    assert "resumed at step" in finish(killed)
    assert (killed / "tuning.json").read_bytes() == (whole / "tuning.json").read_bytes()
    for name in (*TRIALS, RUN):
        assert metrics(killed / name, "eval") == metrics(whole / name, "eval")
        assert [r["loss"] for r in metrics(killed / name, "train")] == [
            r["loss"] for r in metrics(whole / name, "train")
        ]
    (choice,) = json.loads((whole / "tuning.json").read_text())["settings"].values()
    used = json.loads((killed / RUN / "run.json").read_text())
    assert used["settings"]["optimizer"]["peak_lr"] == choice["chosen"]["optimizer.peak_lr"]
    assert len(used["earlier_starts"]) >= 1
