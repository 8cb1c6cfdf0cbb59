"""What the monitor says of a run: its speed, whether it learns anything, whether its loss is a number."""

import math
import types

import jax.numpy as jnp
import numpy as np
import pytest
from silent import Silent

from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.system import devices
from squeezenet_jax.training import monitor


class SimulatedDevice:
    """A clock, and a device that computes one step after the other, 32 images each, in `seconds` each."""

    def __init__(self, seconds):
        self.now, self.free, self.seconds, self.done = 100.0, 0.0, seconds, []

    def step(self):
        self.free = max(self.free, self.now) + self.seconds
        self.done.append(self.free)
        tally = dict.fromkeys(("loss", "top1", "top5", "grad_norm", "learning_rate"), 0) | {"count": 32}
        return {name: SimulatedArray(self, self.free, value) for name, value in tally.items()}


class SimulatedArray:
    def __init__(self, device, ready, value):
        self._device, self._ready, self._value = device, ready, value

    def is_ready(self):
        return self._device.now >= self._ready

    def __array__(self, *_, **__):  # fetching it waits for it
        self._device.now = max(self._device.now, self._ready)
        return np.float64(self._value)


@pytest.mark.parametrize("pauses", [0.0, 12.0])  # of the host, at most, while the system has it wait for a core
@pytest.mark.parametrize("input_seconds", [0.0, 0.5, 3.0])  # faster and slower than the device
@pytest.mark.parametrize("log_every", [4, 20, 1000])
def test_images_per_second_are_those_of_the_device_however_a_window_ends(
    tiny, tmp_path, monkeypatch, log_every, input_seconds, pauses
):
    device, reporter, random = SimulatedDevice(seconds=1.0), Silent(), np.random.default_rng(log_every)
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: device.now)
    waited = 0.0
    settings = tiny(train__log_every_steps=log_every)
    watch = monitor.Monitor(settings, RunDirectory(tmp_path), reporter, 45.0, lambda: waited, devices.PeakMemory())
    for step in range(1, 456):
        device.now, waited = device.now + input_seconds, waited + input_seconds
        tally = device.step()
        device.now = max([device.now, *device.done[: -devices.IN_FLIGHT][-1:]])  # `devices.Pace`
        device.now += pauses * float(random.random() > 0.9) * random.random()
        watch.add(step, tally)
        if step % 45 == 0 or step in (61, 88, 455):  # evaluations, which take time of their own, and checkpoints
            watch.flush()
            device.now += 7.0
            watch.restart_clock()
    assert reporter.records[-1]["step"] == 455
    typical = 32 / max(1.0, input_seconds)
    starts = [step for step in range(456) if step % 45 == 0 or step in (61, 88)]
    for record in reporter.records:
        shortest = min(log_every / 2, record["step"] - max(start for start in starts if start < record["step"]))
        error = 2 / shortest  # a step at either end of what a line is over
        fastest = 32 if pauses else typical  # after a pause there is input for several steps
        assert record["images_per_second"] <= fastest / (1 - min(error, 0.5)), record
        assert record["images_per_second"] >= (0.2 if pauses else 1 / (1 + error)) * typical, record
        assert record["input_wait"] <= 1
        assert 0 <= record["step_seconds"] <= record["step_seconds_p90"]
        assert record["device_memory_bytes"] is None  # a CPU does not say
        if not pauses and shortest >= 4:  # the device does a step in one second, or waits for its batch
            assert record["step_seconds"] == pytest.approx(max(1.0, input_seconds), rel=0.5), record


def test_the_fullest_device_says_how_much_memory_is_in_use(monkeypatch):
    counts = [{"peak_bytes_in_use": 5}, None, {"peak_bytes_in_use": 7, "bytes_in_use": 1}, {}]
    found = [types.SimpleNamespace(memory_stats=lambda count=count: count) for count in counts]
    monkeypatch.setattr(devices.jax, "local_devices", list)  # none that says it
    first = devices.PeakMemory()
    assert first.read() is None
    monkeypatch.setattr(devices.jax, "local_devices", lambda: found)
    assert first.read() == 7
    second = devices.PeakMemory()  # of a smaller run behind it, in the same process
    assert second.read() is None
    counts[0]["peak_bytes_in_use"] = 8
    assert (first.read(), second.read()) == (8, 8)


def watched(tiny, tmp_path, losses, label_entropy=None):
    """A monitor that has been told of one step with each of these losses."""
    reporter = Silent()
    settings = tiny(train__log_every_steps=1, train__epochs=8.0)
    watch = monitor.Monitor(
        settings, RunDirectory(tmp_path), reporter, 1.0, lambda: 0.0, devices.PeakMemory(), label_entropy
    )
    for step, loss in enumerate(losses, start=1):
        one = {"top1": 0, "top5": 1, "count": 2, "grad_norm": 0.0, "learning_rate": 0.1}
        watch.add(step, {name: jnp.float32(value) for name, value in (one | {"loss": 2 * loss}).items()})
    watch.flush()
    return watch, reporter


def test_a_loss_that_stays_at_ln_k_is_reported_once_loudly_and_marks_the_run(tiny, tmp_path):
    watch, reporter = watched(tiny, tmp_path, [math.log(10) + 0.01] * 8)
    assert watch.stalled
    assert len(reporter.notices) == 1
    assert "STALLED" in reporter.notices[0]
    assert "model.kernel_init" in reporter.notices[0]


def test_a_loss_that_leaves_ln_k_is_not_stalled(tiny, tmp_path):
    watch, reporter = watched(tiny, tmp_path, [math.log(10), 2.0, 1.0, 0.5])
    assert not watch.stalled
    assert not reporter.notices


@pytest.mark.parametrize(("loss", "stalled"), [(0.199, True), (0.192, False), (0.205, False), (math.log(10), False)])
def test_the_loss_of_guessing_is_the_entropy_of_the_labels(tiny, tmp_path, loss, stalled):
    """At 95:5 it is 0.1985; there a tenth of ln(10)'s margin is left, as a tenth of its room is."""
    entropy = -0.95 * math.log(0.95) - 0.05 * math.log(0.05)
    watch, reporter = watched(tiny, tmp_path, [loss] * 8, entropy)
    assert watch.stalled == stalled
    assert [f"{loss:.4f}, within 0.0017 of 0.1985" in notice for notice in reporter.notices] == [True] * stalled


@pytest.mark.parametrize("entropy", [None, math.log(10)])
@pytest.mark.parametrize(("above", "stalled"), [(0.019, True), (0.021, False)])
def test_classes_that_are_equally_common_or_not_known_are_judged_by_ln_k(tiny, tmp_path, entropy, above, stalled):
    watch, _ = watched(tiny, tmp_path, [math.log(10) + above] * 8, entropy)
    assert watch.stalled == stalled


def test_a_window_without_a_readable_image_is_no_line_and_not_the_end(tiny, tmp_path):
    reporter = Silent()
    watch = monitor.Monitor(
        tiny(train__log_every_steps=1), RunDirectory(tmp_path), reporter, 1.0, lambda: 0.0, devices.PeakMemory()
    )
    for step, count in enumerate((2, 0, 2), start=1):
        one = {"loss": 1.0 * count, "top1": 0, "top5": 1, "count": count, "grad_norm": 0.0, "learning_rate": 0.1}
        watch.add(step, {name: jnp.float32(value) for name, value in one.items()})
    watch.flush()
    assert [record["step"] for record in reporter.records] == [1, 3]
    assert reporter.notices == ["steps 2 to 2: none of their images could be read"]
    assert not watch.diverged
