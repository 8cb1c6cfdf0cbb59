"""What is said of runs that run at the same time."""

import io

import pytest
from rich.console import Console

from squeezenet_jax.experiment import progress
from squeezenet_jax.experiment.progress import SideBySide, seconds_until_all_ended


def test_a_run_that_waits_takes_the_first_place_that_is_free():
    assert seconds_until_all_ended([10.0, 40.0], waiting=[]) == 40.0
    assert seconds_until_all_ended([10.0, 40.0], waiting=[30.0]) == 40.0
    assert seconds_until_all_ended([10.0, 40.0], waiting=[30.0, 30.0]) == 70.0
    assert seconds_until_all_ended([10.0, 40.0], waiting=[30.0, 5.0]) == 45.0


@pytest.mark.parametrize("terminal", [True, False])
def test_there_is_a_line_for_each_run_and_one_for_all_with_the_time_left(monkeypatch, terminal):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    file = io.StringIO()
    with SideBySide(Console(file=file, force_terminal=terminal, width=200), jobs=2) as shown:
        shown.waiting = [1.0, 1.0, 1.0]
        reporters = [shown.begin(f"[seed]={seed}", seed + 1, 5) for seed in (0, 1)]  # rich would read it as markup
        assert shown.whole() == "all: 0 of 5 runs ended, 2 running"
        for reporter in reporters:
            reporter.start(0, 100)
        clock[0] += 30
        for step, reporter in zip((10, 50), reporters, strict=True):
            reporter.record({"split": "train", "step": step, "loss": 2.0, "images_per_second": 5.0, "input_wait": 0.0})
        # 270 and 30 s are left of these two, and each of the three behind them takes 180 s, the mean: 270 + 180.
        assert shown.whole() == "all: 0 of 5 runs ended, 2 running, 7m30s left"
        shown.say()
        shown.end("[seed]=1")
        reporters[0].notice("beware")
        assert shown.whole() == "all: 1 of 5 runs ended, 1 running, 6m00s left"
    text = file.getvalue()
    assert "run 2/5 [seed]=1: step 50/100, loss 2.0000, 5 images/s, 0m30s left" in text
    assert "run 1/5 [seed]=0: beware" in text
    costly = {"step_seconds": 0.0123, "step_seconds_p90": 0.02, "device_memory_bytes": 3 * 2**30}
    reporters[0].record(
        {"split": "train", "step": 11, "loss": 2.0, "images_per_second": 5.0, "input_wait": 0.0, **costly}
    )
    assert "5 images/s, 12.3 ms a step (90 % below 20), 3.0 GiB, " in reporters[0].line()
    assert ("run 1/5 [seed]=0: started" in text) == (not terminal)
    assert ("all: 0 of 5 runs ended, 2 running, 7m30s left\n" in text) == (not terminal)
    if terminal:
        assert "run 1/5 [seed]=0: step 10/100" in text and "all: " in text
