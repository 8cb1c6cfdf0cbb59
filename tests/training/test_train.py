"""The properties that make a run trustworthy: reproducible on any number of devices, resumable, exact, judged."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damage import cut_off, empty, flip_a_bit
from jax.sharding import AxisType
from silent import Silent

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
from squeezenet_jax.weights.formats import run_directory


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
    provenance = weights.load(tmp_path / "network.sqz").provenance
    assert provenance["step"] == "12" and run_directory.remark(provenance) == ""


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


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param({}, id="plain"),
        pytest.param(RECIPE, id="recipe", marks=pytest.mark.long),
        pytest.param(COMPRESSED, id="compressed", marks=pytest.mark.long),
    ],
)
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


def test_all_batch_sizes_that_the_devices_cannot_share_are_named_at_once(tiny, tmp_path):
    one = r"train\.batch_size: 12 is not a multiple of the 8 devices; nearest: 8 or 16"
    with pytest.raises(UserError, match=f"^{one}$"):
        run(tiny(train__batch_size=12), tmp_path)
    other = r"train\.eval_batch_size: 5 is not a multiple of the 8 devices; nearest: 8"
    with pytest.raises(UserError, match=f"^{one}; {other}$"):
        run(tiny(train__batch_size=12, train__eval_batch_size=5), tmp_path)
    with pytest.raises(UserError, match="16 is not a multiple of the 8 devices x 3 accumulation steps; nearest: 24"):
        run(tiny(train__accumulation_steps=3), tmp_path)


def test_layers_too_large_for_a_compressed_file_are_found_before_training(tiny):
    """It is written when training ends."""
    message = r"compress\.share: kmeans is not allowed; fire8/expand3x3 has 7,225,344 weights, and of a layer a"
    with pytest.raises(UserError, match=message):
        train.check(tiny(model__width=7.0, compress__share="kmeans"))
    message = r"kmeans is not allowed; the network has 1\d,\d{3},\d{3} weights, and of a network a .* 16,777,216$"
    with pytest.raises(UserError, match=message):
        train.check(tiny(model__width=4.0, model__bypass="complex", compress__share="kmeans"))


@pytest.mark.parametrize(("name", "value"), [("prune", "uniform"), ("share", "kmeans")])
def test_frozen_weights_are_neither_pruned_nor_shared(tiny, name, value):
    settings = tiny(model__init_from="w", model__freeze="fire2", **{f"compress__{name}": value})
    message = rf"compress\.{name}: {value} is not allowed; it must be none with model.freeze fire2"
    with pytest.raises(UserError, match=message):
        train.check(settings)


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
