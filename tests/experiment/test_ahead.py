"""Which settings' programs are compiled while runs train, and by whom, with processes that compile nothing."""

import contextlib
import dataclasses
import errno
import os
import time
from pathlib import Path

import jax
import pytest
from test_sweep import experiment, planned, run
from tiny_settings import make_settings

from squeezenet_jax.experiment import ahead, sweep
from squeezenet_jax.system import children, cores, devices, processes
from squeezenet_jax.training import train

NONE, SIMPLE, COMPLEX = (make_settings(model__bypass=bypass, seed=3) for bypass in ("none", "simple", "complex"))
possible = ahead._possible  # before conftest.py's fixture


class Compiling:
    """A process that compiles until it is told that it has ended."""

    def __init__(self, settings):
        self.settings, self.alive = settings, True

    def is_alive(self):
        return self.alive

    def kill(self):
        self.alive = False

    def join(self, seconds):
        assert not self.alive

    def close(self):
        pass


@pytest.fixture
def started(monkeypatch):
    started = []

    def start(target, settings, steps_per_epoch, scratch, *, urgent):
        assert target is ahead.compile_and_end and steps_per_epoch == 6.0 and not urgent
        assert os.listdir(scratch) == []
        started.append(Compiling(settings))
        return started[-1], started[-1]

    monkeypatch.setattr(ahead, "_possible", lambda: True)
    monkeypatch.setattr(cores.IdleCores, "look", lambda self: 1.0)
    monkeypatch.setattr(children, "start", start)
    return started


def compiler_behind_a_run():
    """Of a process that has run something else and left a core idle."""
    compiler = ahead.Ahead()
    compiler.before(make_settings(model__width=0.25), None)
    return compiler


def test_nothing_is_compiled_before_a_run_has_left_a_core_idle(started, monkeypatch):
    idle = iter([0.3, 0.9])
    monkeypatch.setattr(cores.IdleCores, "look", lambda self: next(idle))
    compiler = ahead.Ahead()
    for seed, expected in ((0, 0), (1, 0), (2, 1)):
        compiler.before(dataclasses.replace(NONE, seed=seed), SIMPLE)
        assert len(started) == expected


def test_one_process_compiles_what_all_seeds_of_a_setting_share(started):
    compiler = compiler_behind_a_run()
    for seed in (0, 1, 2):
        compiler.before(dataclasses.replace(NONE, seed=seed), SIMPLE)
        started[0].alive = False
    assert [one.settings for one in started] == [dataclasses.replace(SIMPLE, seed=0)]


def test_what_this_process_has_compiled_itself_is_not_compiled_again(started):
    compiler = compiler_behind_a_run()
    for settings, following in ((NONE, SIMPLE), (SIMPLE, NONE), (NONE, SIMPLE), (SIMPLE, None)):  # seeds outermost
        compiler.before(settings, following)
        started[0].alive = False
    assert len(started) == 1


def test_there_is_one_process_at_a_time_which_is_given_up_where_its_own_setting_begins(started):
    compiler = compiler_behind_a_run()
    compiler.before(NONE, SIMPLE)
    compiler.before(dataclasses.replace(NONE, seed=4), COMPLEX)
    assert started[0].alive
    compiler.before(SIMPLE, COMPLEX)
    assert not started[0].alive
    assert [one.settings.model.bypass for one in started] == ["simple", "complex"]
    compiler.close()
    assert not started[1].alive


@pytest.mark.parametrize(
    "why",
    [
        "the cache is off",
        "nothing is kept",
        "some are dropped",
        "in a bucket",
        "several processes",
        "a GPU",
        "not Linux",
    ],
)
def test_it_is_only_done_where_it_is_of_use_and_disturbs_nobody(monkeypatch, why):
    changed = {"the cache is off": ("jax_enable_compilation_cache", False)}
    changed["nothing is kept"] = ("jax_compilation_cache_dir", None)
    changed["some are dropped"] = ("jax_compilation_cache_max_size", 10**9)
    changed["in a bucket"] = ("jax_compilation_cache_dir", "gs://bucket/programs")
    with keeping("jax_enable_compilation_cache", "jax_compilation_cache_dir", "jax_compilation_cache_max_size"):
        jax.config.update("jax_compilation_cache_dir", "somewhere")
        assert possible()
        if why in changed:
            jax.config.update(*changed[why])
        if why == "several processes":
            monkeypatch.setattr(processes, "several", lambda: True)
        if why == "a GPU":
            monkeypatch.setattr(devices, "available", lambda: [type("Device", (), {"platform": "gpu"})])
        if why == "not Linux":
            monkeypatch.delattr(os, "SCHED_IDLE")
        assert not possible()


@contextlib.contextmanager
def keeping(*names):
    before = {name: getattr(jax.config, name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_a_sweep_says_before_each_run_which_setting_follows(tmp_path, monkeypatch):
    told, ended = [], []

    def one(plan, planned_run, directory, reporter, should_stop):
        directory.path.mkdir(parents=True, exist_ok=True)
        directory.write_status("done")
        return "done"

    monkeypatch.setattr(sweep, "prepare", lambda *_: None)
    monkeypatch.setattr(sweep, "run_one", one)
    monkeypatch.setattr(sweep.Ahead, "before", lambda self, *settings: told.append(settings))
    monkeypatch.setattr(sweep.Ahead, "close", lambda self: ended.append(len(told)))
    plan = planned(experiment(bypasses=("none", "simple", "complex")))
    finished = plan.runs[2]  # simple's first seed
    one(plan, finished, sweep.RunDirectory(tmp_path / finished.name), None, None)
    run(plan, tmp_path)
    short = [(a.model.bypass, a.seed, b and (b.model.bypass, b.seed)) for a, b in told]
    simple, complex_ = ("simple", 1), ("complex", 0)
    assert short == [("none", 0, simple), ("none", 1, simple), ("simple", 1, complex_)] + [
        ("complex", seed, None) for seed in (0, 1)
    ]
    assert ended == [5]


def test_what_is_unfinished_in_the_end_is_given_up(monkeypatch):
    monkeypatch.setattr(ahead, "_possible", lambda: True)
    monkeypatch.setattr(cores.IdleCores, "look", lambda self: 1.0)
    monkeypatch.setattr(ahead, "compile_and_end", sleep)
    compiler = compiler_behind_a_run()
    compiler.before(NONE, SIMPLE)
    process = compiler._process
    assert process.is_alive()
    compiler.close()
    assert not process.is_alive() and process.exitcode < 0


def sleep(pipe, *arguments):
    time.sleep(1000)


@pytest.mark.parametrize(
    "error", [OSError(errno.EAGAIN, "Resource temporarily unavailable"), RuntimeError("can't start new thread")]
)
def test_a_process_that_cannot_be_started_costs_the_run_nothing(started, monkeypatch, error):
    def start(*arguments, urgent):
        raise error

    monkeypatch.setattr(children, "start", start)
    compiler = compiler_behind_a_run()
    compiler.before(NONE, SIMPLE)
    compiler.before(SIMPLE, COMPLEX)
    compiler.close()


def test_programs_appear_in_the_cache_when_all_are_there(tmp_path, monkeypatch):
    cache, scratch = tmp_path / "cache", tmp_path / "scratch"
    for folder in (cache, scratch):
        folder.mkdir()
    (cache / "old-cache").write_text("old")

    def compile_ahead(settings, steps_per_epoch):
        here = Path(jax.config.jax_compilation_cache_dir)
        assert (here / "old-cache").read_text() == "old"  # what is known need not be compiled again
        (here / "new-cache").write_text("new")
        assert os.listdir(cache) == ["old-cache"]

    monkeypatch.setattr(train, "compile_ahead", compile_ahead)
    monkeypatch.setattr(devices, "keep_compiled_programs", lambda: None)
    for what in ("leave_signals_to_parent", "go_first_if_memory_runs_out"):
        monkeypatch.setattr(children, what, lambda: None)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    with keeping("jax_compilation_cache_dir"):
        jax.config.update("jax_compilation_cache_dir", str(cache))
        ahead.compile_and_end(None, SIMPLE, 6.0, str(scratch))
    assert {file.name: file.read_text() for file in cache.iterdir()} == {"old-cache": "old", "new-cache": "new"}
    assert not any(file.is_symlink() for file in cache.iterdir())


def test_what_fails_there_is_left_to_the_run_and_its_terminal_alone(tmp_path, monkeypatch, capfd):
    cache, scratch = tmp_path / "cache", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    wrong = dataclasses.replace(SIMPLE, train=dataclasses.replace(SIMPLE.train, batch_size=17))
    pipe, process = children.start(ahead.compile_and_end, wrong, 6.0, str(scratch))
    process.join()
    pipe.close()
    assert process.exitcode == 0
    assert capfd.readouterr() == ("", "")
    assert not list(cache.glob("jit_train_step*"))
