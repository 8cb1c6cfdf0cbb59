"""One of two processes that train together is killed."""

import time

import pytest
import several_processes
from trainings import newest, wait_until

nothing_is_left = several_processes.nothing_is_left


@pytest.mark.slow
@pytest.mark.long
def test_where_one_of_two_processes_is_killed_the_other_ends_and_both_resume(tmp_path):
    """Neither can tell a dead partner from a slow one but by its heartbeats."""
    overrides = {"train.checkpoint_every_steps": 5, "model.kernel_init": "he_uniform"}
    several_processes.finish(several_processes.start(tmp_path / "alone", devices=2, **overrides))
    workdir = tmp_path / "two"
    run = workdir / "bypass=simple,seed=1"
    for victim in (1, 0):
        before = newest(run)
        started = several_processes.start_two(workdir, devices=1, **overrides)
        wait_until(lambda before=before: newest(run) > before, *started)
        began = time.monotonic()
        started[victim].kill()
        started[1 - victim].communicate(timeout=60)
        assert started[1 - victim].returncode not in (0, None)
        assert time.monotonic() - began < 45
        assert newest(run) < several_processes.TOTAL_STEPS
    several_processes.finish(*several_processes.start_two(workdir, devices=1, **overrides))
    several_processes.assert_same(several_processes.results(workdir), several_processes.results(tmp_path / "alone"))
