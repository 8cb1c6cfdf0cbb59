"""The properties that make a run trustworthy: reproducible on any number of devices, resumable, exact, judged."""

import dataclasses
import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damage import cut_off, empty, flip_a_bit
from jax.sharding import AxisType

from squeezenet_jax import weights
from squeezenet_jax.data import sources
from squeezenet_jax.data.batches import EvalBatches, TrainBatches
from squeezenet_jax.data.loader import Loader
from squeezenet_jax.runs import checkpoint, predictions
from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.system import devices
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.training import monitor, objective, train
from squeezenet_jax.training.compilation import compile_steps, programs
from squeezenet_jax.training.steps import build_model
from squeezenet_jax.weights.bundle import unflatten


class Silent:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.records, self.notices, self.starts = [], [], []

    def start(self, step, total_steps):
        self.starts.append((step, total_steps))

    def record(self, record):
        self.records.append(record)

    def notice(self, text):
        self.notices.append(text)


def run(settings, path, should_stop=lambda: False):
    """Trains; returns status, final parameters, metrics and reporter."""
    directory, reporter = RunDirectory(path), Silent()
    path.mkdir(parents=True, exist_ok=True)
    if settings.compress.share != "none":  # its compressed file is written of what the directory says
        directory.begin({"settings": dataclasses.asdict(settings)})
    status = train.train(settings, directory, reporter, should_stop)
    return status, final_params(path), directory.read_metrics(), reporter


def stop_at(question):
    """A `should_stop` that says so from its nth question on.

    A run of the `tiny` settings asks after each of its 12 steps, and before each of the two batches of the
    evaluations after steps 6 and 12: question 9 is the first after step 7.
    """
    questions = iter(range(1, 100))
    return lambda: next(questions) >= question


def final_params(path):
    newest = checkpoint.read_newest(path / "checkpoints")
    return newest and {name: x for name, x in newest[1].items() if name.startswith(("params/", "model_state/", "ema/"))}


def assert_equal(a, b, **tolerance):
    compare = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: compare(x, y, **tolerance), a, b)


def curve(metrics, split="train", name="loss"):
    return [(record["step"], record[name]) for record in metrics if record["split"] == split]


@pytest.fixture
def on_devices(monkeypatch):
    """Makes training use the first n devices."""

    def use(count):
        mesh = jax.make_mesh((count,), ("data",), devices=jax.devices()[:count], axis_types=(AxisType.Auto,))
        monkeypatch.setattr(devices, "data_mesh", lambda: mesh)

    return use


def test_eight_devices_are_there():
    assert devices.data_mesh().size == 8


@pytest.mark.long
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_one_and_eight_devices_train_the_same(tiny, tmp_path, on_devices, norm):
    # SGD: Adam divides by gradients near 0 and turns rounding into steps
    rate = 0.05 if norm == "none" else 0.001  # so small a network with batch norm is chaotic above it
    settings = tiny(optimizer__name="sgd", optimizer__peak_lr=rate, data__crop_padding=1, model__norm=norm)
    results = []
    for count in (1, 8):
        on_devices(count)
        results.append(run(settings, tmp_path / str(count)))
    (_, params_1, metrics_1, _), (_, params_8, metrics_8, _) = results
    np.testing.assert_allclose(curve(metrics_1), curve(metrics_8), rtol=1e-5 if norm == "none" else 1e-3)
    assert curve(metrics_1, "eval", "count") == curve(metrics_8, "eval", "count") == [(6, 50), (12, 50)]
    for count, metrics in ((1, metrics_1), (8, metrics_8)):  # evaluated in batches of 32, the last one filled up
        found = predictions.load(tmp_path / str(count))
        np.testing.assert_array_equal(found.index, np.arange(50))
        np.testing.assert_array_equal(found.label, sources.load(settings.data, "eval_split").label)
        assert found.top1.mean() == curve(metrics, "eval", "top1")[-1][1]
        assert (found.top == found.label[:, None]).any(1).mean() == curve(metrics, "eval", "top5")[-1][1]
        assert -np.log(found.probability).mean() == pytest.approx(curve(metrics, "eval")[-1][1], rel=1e-5)
    assert_equal(params_1, params_8, rtol=1e-3, atol=1e-5 if norm == "none" else 1e-4)


@pytest.mark.long
@pytest.mark.parametrize(("share", "ema_decay"), [("kmeans", 0.0), ("uniform", 0.0), ("kmeans", 0.8)])
def test_weights_that_are_removed_stay_so_and_shared_ones_stay_equal(tiny, tmp_path, share, ema_decay):
    run(tiny(**COMPRESSED | {"compress__share": share, "train__ema_decay": ema_decay}), tmp_path)
    _, arrays = checkpoint.read_newest(tmp_path / "checkpoints")
    if ema_decay:  # what holds for the parameters holds for their average
        kept = {n.removeprefix("ema/"): x for n, x in arrays.items() if n.startswith("ema/")}
        assert kept and any((arrays[name] != x).any() for name, x in kept.items())
        arrays |= kept
    kernels = {name: x for name, x in arrays.items() if name.startswith("params/") and name.endswith("kernel")}
    removed = {name: arrays[name.replace("params/", "codes/")] == 0 for name in kernels}
    assert kernels.keys() == removed.keys() and len(kernels) == 26
    for name, kernel in kernels.items():
        assert not kernel[removed[name]].any() and len(np.unique(kernel)) <= 8
    assert not removed["params/conv1/kernel"].all()
    pruned = {name: np.mean(mask) for name, mask in removed.items() if name != "params/conv1/kernel"}
    sizes = {name: kernels[name].size for name in pruned}
    share_removed = sum(pruned[name] * sizes[name] for name in pruned) / sum(sizes.values())
    # k-means keeps every weight that pruning keeps; small multiples of a step round to 0, too.
    assert share_removed == pytest.approx(0.6, abs=1e-3) if share == "kmeans" else share_removed > 0.599
    before = checkpoint.read(tmp_path / "checkpoints/10.safetensors")
    assert any((before[name] != kernel).any() for name, kernel in kernels.items())  # shared values are trained


def test_same_seed_same_bits_other_seed_other_curve(tiny, tmp_path):
    _, params, metrics, _ = run(tiny(), tmp_path / "a")
    _, again, metrics_again, _ = run(tiny(), tmp_path / "b")
    _, _, other, _ = run(tiny(seed=1), tmp_path / "c")
    assert_equal(params, again)
    assert curve(metrics) == curve(metrics_again)
    assert curve(metrics) != curve(other)


COMPRESSED = {  # of 12 steps: weights go before steps 4 to 7 (from 0), are shared before step 9
    "compress__prune": "global",
    "compress__density": 0.4,
    "compress__prune_from": 0.33,
    "compress__prune_until": 0.6,
    "compress__share": "kmeans",
    "compress__bits": 3,
    "compress__share_from": 0.75,
}


RECIPE = {
    "model__norm": "batch",
    "data__mixup_alpha": 0.5,
    "data__cutout": 3,
    "optimizer__label_smoothing": 0.1,
    "train__ema_decay": 0.8,
}


@pytest.mark.parametrize("variant", [{}, RECIPE, COMPRESSED], ids=["plain", "recipe", "compressed"])
def test_stopped_and_started_again_ends_with_the_same_bits(tiny, tmp_path, variant):
    settings = tiny(**variant)
    uninterrupted_status, uninterrupted, metrics, _ = run(settings, tmp_path / "whole")
    total_steps = 12
    moments = {1: 1, 4: 4, 5: 5, 6: 6, 8: 6, 13: 11, 16: 12}
    for question, step in moments.items():  # before, at and after log lines, checkpoints and evaluations; in those
        path = tmp_path / str(question)
        status, *_ = run(settings, path, stop_at(question))
        assert status == "preempted"
        status, resumed, metrics_resumed, reporter = run(settings, path)
        assert reporter.starts == [(step, total_steps)]
        assert status == uninterrupted_status
        assert_equal(uninterrupted, resumed)
        assert curve(metrics, "eval") == curve(metrics_resumed, "eval")
        files = [(each / predictions.NAME).read_bytes() for each in (path, tmp_path / "whole")]
        assert files[0] == files[1]
        steps = [step for step, _ in curve(metrics_resumed)]
        assert steps == sorted(set(steps))
        assert steps[-1] == total_steps


def test_the_average_is_what_is_evaluated_and_kept(tiny, tmp_path):
    settings = tiny(
        train__ema_decay=0.25, train__epochs=1.0, train__checkpoint_every_steps=1, train__keep_checkpoints=9
    )
    RunDirectory(tmp_path).begin({"settings": dataclasses.asdict(settings)})
    _, params, metrics, _ = run(settings, tmp_path)
    assert {name.partition("/")[0] for name in params} == {"params", "ema"}
    one, *later = (checkpoint.read(tmp_path / f"checkpoints/{step}.safetensors") for step in range(1, 7))
    averages = {name: x for name, x in one.items() if name.startswith("ema/")}
    for step, arrays in enumerate(later, start=1):
        decay = min(0.25, (1 + step) / (10 + step))
        averages = {n: decay * x + (1 - decay) * arrays[n.removeprefix("ema/")] for n, x in averages.items()}
        for name, x in averages.items():
            np.testing.assert_allclose(arrays[name], x, rtol=1e-3, atol=1e-6)
    kept = weights.load(tmp_path)
    np.testing.assert_array_equal(kept.params["conv1"]["kernel"], params["ema/params/conv1/kernel"])
    source, (mean, std) = sources.load(settings.data, "eval_split"), (settings.data.mean[0], settings.data.std[0])
    image = jnp.asarray((source.image / 255 - mean) / std, jnp.float32)
    raw = unflatten({n.removeprefix("params/"): x for n, x in params.items() if n.startswith("params/")})
    losses = [
        -np.mean(np.asarray(jax.nn.log_softmax(build_model(settings).apply(each, image)))[np.arange(50), source.label])
        for each in (kept.variables, {"params": raw})
    ]
    assert metrics[-1]["loss"] == pytest.approx(losses[0], rel=1e-5) != pytest.approx(losses[1], rel=1e-5)


def test_resuming_needs_only_the_checkpoint(tiny, tmp_path):
    """A kill between two checkpoints loses the steps since the older one, and they are taken again."""
    settings = tiny()
    _, uninterrupted, metrics, _ = run(settings, tmp_path / "whole")
    run(settings, tmp_path / "cut", stop_at(5))
    directory = RunDirectory(tmp_path / "cut")
    directory.append_metrics({"split": "train", "step": 8, "loss": 0.0})  # written after the checkpoint of step 5
    with (directory.path / "metrics.jsonl").open("a") as file:
        file.write('{"split": "tra')
    _, resumed, metrics_resumed, _ = run(settings, tmp_path / "cut")
    assert_equal(uninterrupted, resumed)
    assert curve(metrics) == curve(metrics_resumed)


def test_an_evaluation_that_fails_costs_no_step(tiny, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("the disk is gone")

    monkeypatch.setattr(EvalBatches, "batch_at", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        run(tiny(train__checkpoint_every_steps=100), tmp_path)
    assert checkpoint.steps(tmp_path / "checkpoints") == [6]


def test_a_step_that_is_saved_is_saved_before_its_evaluation(tiny, tmp_path, monkeypatch):
    saved, evaluate = [], objective.evaluate

    def watched(*arguments):
        saved.append(checkpoint.steps(tmp_path / "checkpoints")[-1])
        return evaluate(*arguments)

    monkeypatch.setattr(objective, "evaluate", watched)
    run(tiny(train__checkpoint_every_steps=6), tmp_path)
    assert saved == [6, 12]


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit, empty])
def test_an_unreadable_checkpoint_is_moved_aside_and_the_one_before_is_used(tiny, tmp_path, damage):
    settings = tiny()
    _, uninterrupted, _, _ = run(settings, tmp_path / "whole")
    run(settings, tmp_path / "cut", stop_at(11))
    damage(tmp_path / "cut/checkpoints/9.safetensors")
    _, resumed, _, reporter = run(settings, tmp_path / "cut")
    assert reporter.starts == [(5, 12)]
    assert "checkpoint 9 is unreadable" in reporter.notices[0]
    assert (tmp_path / "cut/checkpoints/9.unreadable").is_file()
    assert_equal(uninterrupted, resumed)


def tally_on_devices(steps, variables, mesh, batch):
    tally, _ = steps.eval(variables, devices.put_batch(batch, mesh))
    return tally


@pytest.mark.long
def test_evaluation_is_exact_whatever_the_batch_size(tiny):
    settings = tiny(model__dropout=0.0)
    source = sources.load(settings.data, "eval_split")
    assert len(source) == 50
    mesh, results = devices.data_mesh(), []
    for batch_size in (8, 32):  # 50 is a multiple of neither
        changed = dataclasses.replace(settings.train, eval_batch_size=batch_size)
        steps = compile_steps(dataclasses.replace(settings, train=changed), 10, 6.0, mesh)
        variables = jax.device_put(steps.init(jax.random.key(0)), devices.replicated(mesh))
        batches = EvalBatches(source, batch_size)
        stream = Loader({"eval": [batches.batch_at]}, None, print).stream("eval", range(len(batches)))
        tally_of = functools.partial(tally_on_devices, steps, variables, mesh)
        results.append(objective.evaluate(tally_of, stream))
    model = build_model(settings)
    mean, std = settings.data.mean[0], settings.data.std[0]
    logits = model.apply(jax.device_get(variables), jnp.asarray((source.image / 255 - mean) / std, jnp.float32))
    top1 = float(np.mean(np.argmax(logits, -1) == source.label))
    loss = -np.mean(np.asarray(jax.nn.log_softmax(logits))[np.arange(50), source.label])
    for result in results:
        assert (result["count"], result["top1"]) == (50, pytest.approx(top1))
        assert result["loss"] == pytest.approx(loss, rel=1e-5)


def test_seeds_share_one_compilation(tiny, tmp_path):
    programs.clear()
    compiled = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(tiny(seed=0), tmp_path / "0")
        assert compiled
        compiled.clear()
        for seed in (1, 2):
            run(tiny(seed=seed), tmp_path / str(seed))
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_a_compiled_step_refuses_other_shapes_instead_of_compiling_again(tiny):
    settings, mesh = tiny(), devices.data_mesh()
    steps = compile_steps(settings, 12, 6.0, mesh)
    batches = TrainBatches(sources.load(settings.data, "train_split"), 8, 0)
    (batch,) = Loader({"train": [batches.batch_at]}, None, print).stream("train", [0])
    key = devices.run_key(0, mesh)
    state = steps.begin(steps.init(jax.random.key(0)))
    with pytest.raises(TypeError, match="compiled"):
        steps.train(state, devices.put_batch(batch, mesh), key)


def test_the_loop_lets_nothing_cross_between_host_and_device_unasked(tiny, tmp_path):
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        run(tiny(), tmp_path, should_stop=lambda: bool((jnp.arange(3) + np.ones(3)).sum() > 99))


def test_the_host_fetches_a_window_only_when_the_next_one_is_under_way(tiny, tmp_path, monkeypatch):
    settings = tiny(train__log_every_steps=3, train__checkpoint_every_steps=100, train__eval_every_epochs=2.0)
    events = []
    add, total = monitor.Monitor.add, objective.total
    monkeypatch.setattr(
        monitor.Monitor, "add", lambda self, step, tally: (events.append(f"dispatched {step}"), add(self, step, tally))
    )

    def watched(tallies):
        events.append(f"fetched {len(tallies)}")
        return total(tallies)

    monkeypatch.setattr(objective, "total", watched)
    run(settings, tmp_path)
    first_fetch = events.index("fetched 3")
    assert events[first_fetch - 1] == "dispatched 6"  # steps 1 to 3, while 4 to 6 have been dispatched
    assert events.count("fetched 3") == 4


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
    watch = monitor.Monitor(settings, RunDirectory(tmp_path), reporter, 45.0, lambda: waited)
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
    monkeypatch.setattr(devices.jax, "local_devices", lambda: found)
    assert devices.peak_memory() == 7


def watched(tiny, tmp_path, losses, label_entropy=None):
    """A monitor that has been told of one step with each of these losses."""
    reporter = Silent()
    settings = tiny(train__log_every_steps=1, train__epochs=8.0)
    watch = monitor.Monitor(settings, RunDirectory(tmp_path), reporter, 1.0, lambda: 0.0, label_entropy)
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
    watch = monitor.Monitor(tiny(train__log_every_steps=1), RunDirectory(tmp_path), reporter, 1.0, lambda: 0.0)
    for step, count in enumerate((2, 0, 2), start=1):
        one = {"loss": 1.0 * count, "top1": 0, "top5": 1, "count": count, "grad_norm": 0.0, "learning_rate": 0.1}
        watch.add(step, {name: jnp.float32(value) for name, value in one.items()})
    watch.flush()
    assert [record["step"] for record in reporter.records] == [1, 3]
    assert reporter.notices == ["steps 2 to 2: none of their images could be read"]
    assert not watch.diverged


def test_a_stalled_run_is_marked_so_by_training(tiny, tmp_path):
    status, *_ = run(tiny(train__stall_margin=5.0), tmp_path)
    assert status == "stalled"


def test_a_loss_that_is_not_finite_ends_the_run(tiny, tmp_path):
    settings = tiny(optimizer__name="sgd", optimizer__peak_lr=1e30, optimizer__clip_norm=0.0, model__conv10_relu=False)
    status, params, metrics, _ = run(settings, tmp_path)
    assert status == "diverged"
    assert metrics[-1]["loss"] is None  # JSON has no NaN
    assert params is None or all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_an_evaluation_that_is_not_finite_ends_the_run_too(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(objective, "evaluate", lambda *_: {"loss": math.nan, "top1": 0.0, "top5": 0.0, "count": 50})
    assert run(tiny(), tmp_path)[0] == "diverged"


@pytest.mark.parametrize("field", ["batch_size", "eval_batch_size"])
def test_a_batch_that_the_devices_cannot_share_is_refused(tiny, tmp_path, field):
    with pytest.raises(UserError, match=rf"train\.{field}: 12 is not a multiple of the 8 devices"):
        run(tiny(**{f"train__{field}": 12}), tmp_path)

    one = r"train\.batch_size: 12 is not a multiple of the 8 devices; nearest: 8 or 16"
    with pytest.raises(UserError, match=f"^{one}$"):
        run(tiny(train__batch_size=12), tmp_path)
    other = r"train\.eval_batch_size: 5 is not a multiple of the 8 devices; nearest: 8"
    with pytest.raises(UserError, match=f"^{one}; {other}$"):
        run(tiny(train__batch_size=12, train__eval_batch_size=5), tmp_path)
    with pytest.raises(UserError, match="16 is not a multiple of the 8 devices x 3 accumulation steps; nearest: 24"):
        run(tiny(train__accumulation_steps=3), tmp_path)


def test_order_and_keys_follow_from_the_runs_seed(tiny, tmp_path, monkeypatch):
    seeds, steps, run_key, batch_at = set(), [], devices.run_key, TrainBatches.batch_at

    def key_of(seed, mesh):
        seeds.add(("key", seed))
        return run_key(seed, mesh)

    def batch_of(batches, step):
        seeds.add(("order", batches.seed))
        steps.append(step)
        return batch_at(batches, step)

    monkeypatch.setattr(devices, "run_key", key_of)
    monkeypatch.setattr(TrainBatches, "batch_at", batch_of)
    run(tiny(seed=3), tmp_path)
    assert seeds == {("key", 3), ("order", 3)}
    assert steps == [0, *range(12)]  # LSUV's images are the first batch's


def test_an_evaluation_is_of_the_step_and_epoch_that_were_just_trained_and_saved(tiny, tmp_path):
    _, _, metrics, _ = run(tiny(), tmp_path)
    assert curve(metrics, "eval", "epoch") == [(6, 1.0), (12, 2.0)]
    assert checkpoint.steps(tmp_path / "checkpoints")[-1] == 12
    assert checkpoint.read_newest(tmp_path / "checkpoints")[1]["step"] == 12


@pytest.mark.parametrize(
    ("eval_every_epochs", "evaluated"),
    [(0.4, [*range(1, 11)]), (1.2, [3, 6, 10]), (1.9, [5, 10]), (2.4, [6, 10]), (9.0, [10])],
)
def test_evaluations_are_regular_and_at_the_end_but_not_just_before_it(tiny, eval_every_epochs, evaluated):
    schedule = train.Schedule.of(tiny(train__epochs=4.0, train__eval_every_epochs=eval_every_epochs), 2.5)
    assert schedule.total_steps == 10
    assert [step for step in range(1, 11) if schedule.evaluates(step)] == evaluated


def test_checkpoints_are_regular_and_at_the_end(tiny):
    schedule = train.Schedule.of(tiny(train__epochs=4.0, train__checkpoint_every_steps=4), 2.5)
    assert [step for step in range(1, 11) if schedule.saves(step)] == [4, 8, 10]
