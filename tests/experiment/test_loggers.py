"""Curves in TensorBoard's event files and in Weights & Biases: what they hold, also after a kill, and how they fail."""

import glob
import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_settings import make_settings

from squeezenet_jax import settings
from squeezenet_jax.experiment import loggers
from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.system.errors import UserError

ROOT = Path(__file__).parents[2]


class Told:
    """A reporter that remembers."""

    def __init__(self):
        self.notices, self.records = [], []

    def start(self, step, total_steps):
        pass

    def record(self, record):
        self.records.append(record)

    def notice(self, text):
        self.notices.append(text)


def train(directory, used, steps, *, after=0, reporter=None):
    """What a run that writes a line for each of these steps does with its metrics and its reporter."""
    reporter = reporter or Told()
    with loggers.attached(reporter, directory, used, "toy on digits") as told:
        directory.truncate_metrics(after=after)
        told.start(after, 100)
        for step in steps:
            for split in ("train", "eval"):
                record = {"split": split, "step": step, "epoch": step / 10, "loss": 1 / step, "top1": None, "count": 9}
                directory.append_metrics(record)
                told.record(record)
    return reporter


def directory_at(path):
    path.mkdir()
    return RunDirectory(path)


def shown(folder):
    """The scalars (tag, step, value) that TensorBoard shows of a folder, and its texts by their tags.

    A session that starts at a step makes it forget what earlier events had from that step on.
    """
    from tensorboardX.proto import event_pb2

    scalars, texts = [], {}
    for name in sorted(glob.glob(f"{folder}/{loggers.EVENTS}")):
        content = Path(name).read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            if event.session_log.status == event_pb2.SessionLog.START:
                scalars = [each for each in scalars if each[1] < event.step]
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    scalars.append((value.tag, event.step, value.simple_value))
                elif value.tensor.string_val:
                    texts[value.tag] = value.tensor.string_val[0].decode()
    return scalars, texts


def curve_of(steps):
    values = {"epoch": lambda step: step / 10, "loss": lambda step: 1 / step}
    return [
        (f"{split}/{name}", step, pytest.approx(value(step)))
        for step in steps
        for split in ("train", "eval")
        for name, value in values.items()
    ]


def test_tensorboard_has_each_line_once_after_a_resume_and_when_it_is_turned_on_late(tmp_path):
    pytest.importorskip("tensorboardX")
    used, off = make_settings(logging__tensorboard=True, model__bypass="simple"), make_settings()
    directory = directory_at(tmp_path / "run")
    train(directory, off, range(1, 4))
    assert shown(directory.path) == ([], {})
    train(directory, used, range(4, 8), after=3)
    train(directory, used, range(6, 10), after=5)  # it was killed after step 7, and its newest checkpoint was of step 5
    scalars, texts = shown(directory.path)
    assert scalars == curve_of(range(1, 10))
    assert "| model.bypass | simple |" in texts["settings/text_summary"]
    assert "logging." not in texts["settings/text_summary"] and "data.dir" not in texts["settings/text_summary"]


@pytest.mark.parametrize("when", ["open", "write", "close"])
def test_a_logger_that_fails_is_one_notice_and_the_others_go_on(monkeypatch, tmp_path, when):
    pytest.importorskip("tensorboardX")

    class Broken:
        def __init__(self, *_):
            self.fail("open")

        def fail(self, here):
            if here == when:
                raise RuntimeError(f"no luck\nat {here}")

        def write(self, record):
            self.fail("write")

        def close(self):
            self.fail("close")

    monkeypatch.setattr(loggers, "WeightsAndBiases", Broken)
    directory = directory_at(tmp_path / "run")
    reporter = train(directory, make_settings(logging__tensorboard=True, logging__wandb="p"), range(1, 4))
    assert reporter.notices == ["logging.wandb: RuntimeError: no luck; the run goes on without it"]
    assert reporter.records == directory.read_metrics() and len(reporter.records) == 6
    assert shown(directory.path)[0] == curve_of(range(1, 4))


def test_a_disk_that_is_full_ends_only_the_logger(monkeypatch, tmp_path):
    record_writer = pytest.importorskip("tensorboardX.record_writer")
    full = Path("/dev/full").open("wb")  # noqa: SIM115 - the logger closes it
    monkeypatch.setattr(record_writer, "open_file", lambda path: full)
    directory = directory_at(tmp_path / "run")
    reporter = train(directory, make_settings(logging__tensorboard=True), range(1, 4))
    assert len(reporter.notices) == 1 and reporter.notices[0].startswith("logging.tensorboard: ")
    assert len(directory.read_metrics()) == 6


def test_where_curves_go_makes_no_other_run_and_is_imported_only_then(tmp_path):
    assert {"logging.tensorboard", "logging.wandb"} <= settings.PLACES
    code = (
        "import sys, squeezenet_jax.experiment.sweep; sys.exit(bool({'tensorboardX', 'wandb', 'jax'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_package_that_is_not_installed_is_said_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    loggers.check(make_settings().logging)
    with pytest.raises(UserError, match=r"logging\.tensorboard: needs tensorboardX; pip install -r requirements-tenso"):
        loggers.check(make_settings(logging__tensorboard=True).logging)
    with pytest.raises(UserError, match=r"logging\.wandb: needs wandb; pip install -r requirements-wandb.txt"):
        loggers.check(make_settings(logging__wandb="p").logging)


def blocks(content, size=2**15):
    """The records of a .wandb file: LevelDB's log format behind seven bytes, which count as a part of its first block.

    A record's header is a checksum (4 bytes), a length (2) and a type (1): whole, first, middle or last part.
    """
    at, parts = 7, b""
    while at + 7 <= len(content):
        if size - at % size < 7:  # too little is left of the block for a header
            at += size - at % size
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def read_wandb(path):
    """(curves as (name, step, value), what its run is called) of a .wandb file."""
    from wandb.proto import wandb_internal_pb2

    rows, begun = [], []
    for content in blocks(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(content)
        if record.WhichOneof("record_type") == "run":
            begun.append(record.run)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows += [(name, items["step"], x) for name, x in items.items() if "/" in name]
    return sorted(rows), begun


@pytest.mark.slow
def test_wandb_offline_has_the_whole_run_in_its_newest_folder_and_one_name_for_all(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    used = make_settings(logging__wandb="squeezenet", model__bypass="simple")
    directory = directory_at(tmp_path / "bypass=simple,seed=0")
    assert train(directory, used, range(1, 4)).notices == []
    assert train(directory, used, range(3, 6), after=2).notices == []
    _, newest = sorted(directory.path.glob("wandb/offline-run-*/*.wandb"))
    expected = sorted((name, step, x.expected) for name, step, x in curve_of(range(1, 6)))
    deadline = time.monotonic() + 20
    while (found := read_wandb(newest))[0] != expected and time.monotonic() < deadline:
        time.sleep(0.1)  # the tool writes in a process of its own
    rows, begun = found
    assert rows == expected
    (identifier,) = (directory.path / loggers.ID).read_text().split()
    assert {(run.run_id, run.display_name, run.project) for run in begun} == {
        (identifier, "bypass=simple,seed=0", "squeezenet")
    }
    config = {item.key: json.loads(item.value_json) for item in begun[0].config.update}
    assert config["model.bypass"] == "simple"
