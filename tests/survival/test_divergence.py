"""The loss is no longer a number."""

import pytest
from trainings import launch, status


@pytest.mark.slow
def test_a_run_that_diverges_is_named_and_the_next_one_is_run(tmp_path):
    exploding = {"optimizer.name": "sgd", "optimizer.peak_lr": 1e30, "optimizer.clip_norm": 0.0}
    done = launch(tmp_path, only="bypass=none,seed=0,seed=1", **exploding, **{"model.conv10_relu": False})
    assert done.returncode == 0, done.stderr
    assert "run 2/2 bypass=none,seed=1: started" in done.stdout
    assert "2 diverged" in done.stdout
    for seed in (0, 1):
        assert status(tmp_path / f"bypass=none,seed={seed}") == "diverged"
