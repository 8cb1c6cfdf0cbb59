"""Which settings' programs are compiled while runs train, and by whom, with processes that compile nothing."""

import contextlib
import dataclasses
import time

import jax
import pytest
from test_sweep import experiment, planned, run
from tiny_settings import make_settings

from squeezenet_jax.experiment import ahead, sweep
from squeezenet_jax.system import children, cores, devices, processes

NONE, SIMPLE, COMPLEX = (make_settings(model__bypass=bypass, seed=3) for bypass in ("none", "simple", "complex"))
possible = ahead._possible  # before conftest.py's fixture


class Compiling:
    """A process that compiles until it is told that it has ended."""

    def __init__(self, settings):
        self.settings, self.pid, self.alive, self.hurried = settings, 7, True, False
        self.pipe = self

    def is_alive(self):
        return self.alive

    def kill(self):
        self.alive = False

    def join(self):
        assert not self.alive

    def close(self):
        pass


@pytest.fixture
def started(monkeypatch):
    started = []

    def start(target, settings):
        assert target is ahead.compile_and_end
        started.append(Compiling(settings))
        return started[-1], started[-1]

    def hurry(pid):
        started[-1].hurried = True

    monkeypatch.setattr(ahead, "_possible", lambda: True)
    monkeypatch.setattr(cores.IdleCores, "look", lambda self: 1.0)
    monkeypatch.setattr(children, "start", start)
    monkeypatch.setattr(children, "use_cores_like_others", hurry)
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


def test_there_is_one_process_at_a_time_and_it_is_waited_for_only_by_its_own_setting(started):
    compiler = compiler_behind_a_run()
    compiler.before(NONE, SIMPLE)
    compiler.before(dataclasses.replace(NONE, seed=4), COMPLEX)
    assert not started[0].hurried
    compiler.before(SIMPLE, COMPLEX)
    assert started[0].hurried and len(started) == 1
    started[0].alive = False
    compiler.before(dataclasses.replace(SIMPLE, seed=4), COMPLEX)
    assert [one.settings.model.bypass for one in started] == ["simple", "complex"]
    compiler.close()
    assert not started[1].alive


@pytest.mark.parametrize("why", ["the cache is off", "nothing is kept", "several processes", "a GPU"])
def test_it_is_only_done_where_it_is_of_use_and_disturbs_nobody(monkeypatch, why):
    changed = {"the cache is off": ("jax_enable_compilation_cache", False)}
    changed["nothing is kept"] = ("jax_compilation_cache_dir", None)
    with keeping("jax_enable_compilation_cache", "jax_compilation_cache_dir"):
        jax.config.update("jax_compilation_cache_dir", "somewhere")
        assert possible()
        if why in changed:
            jax.config.update(*changed[why])
        if why == "several processes":
            monkeypatch.setattr(processes, "several", lambda: True)
        if why == "a GPU":
            monkeypatch.setattr(devices, "available", lambda: [type("Device", (), {"platform": "gpu"})])
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


def sleep(pipe, settings):
    time.sleep(1000)
