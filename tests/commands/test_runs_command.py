"""`python -m squeezenet_jax runs`: what workdirs hold by now, seen from outside."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from squeezenet_jax.__main__ import main
from squeezenet_jax.commands.runs import age
from squeezenet_jax.experiment import overview
from squeezenet_jax.runs.directory import RunDirectory, write_json

ROOT = Path(__file__).parents[2]
PLANNED = ("a,seed=0", "a,seed=1", "b,seed=0", "b,seed=1")


def run_of(workdir, name, status, *, epoch=1.5, top1=0.5, message=""):
    directory = RunDirectory(workdir / name)
    directory.path.mkdir(exist_ok=True)
    write_json(directory.path / "run.json", {"settings": {"train": {"epochs": 3.0}}})
    rows = {"step": 5, "epoch": epoch}
    directory.append_metrics({"split": "train", **rows, "loss": 0.25, "images_per_second": 1234.0})
    directory.append_metrics({"split": "eval", **rows, "top1": top1})
    directory.write_status(status, message)
    return directory


@pytest.fixture
def workdir(tmp_path):
    path = tmp_path / "all/bypass-digits"
    path.mkdir(parents=True)
    planned = {name: {} for name in PLANNED}
    write_json(path / "experiment.json", {"experiment": "bypass", "preset": "digits", "runs": planned})
    return path


def cells(text, name):
    (line,) = [line for line in text.splitlines() if name in line]
    return [cell.strip() for cell in line.replace("│", "|").split("|")[1:-1]]


def test_each_run_has_its_status_accuracy_and_age_without_jax(workdir):
    run_of(workdir, "a,seed=0", "done", epoch=3.0, top1=0.9125)
    held = run_of(workdir, "a,seed=1", "running")
    run_of(workdir, "b,seed=0", "failed", message="RuntimeError: [bold]no luck[/]\nmore")
    run_of(workdir, "c,seed=7", "running")  # nobody is at it, and nobody plans it any longer
    an_hour_ago = time.time() - 3700
    for file in (workdir / "a,seed=0").iterdir():
        os.utime(file, (an_hour_ago, an_hour_ago))
    none = "sys.modules.update(dict.fromkeys(('jax', 'flax', 'tensorflow_datasets')))"
    code = f"import sys; {none}; from squeezenet_jax.__main__ import main; sys.exit(main(sys.argv[1:]))"
    with held.lock():
        command = [sys.executable, "-c", code, "runs", str(workdir.parent)]
        wide = os.environ | {"COLUMNS": "300"}
        result = subprocess.run(command, cwd=ROOT, env=wide, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{workdir}: bypass on digits, 1 of 5 ended" in result.stdout
    done = cells(result.stdout, "a,seed=0")
    assert done == ["a,seed=0", "done", "3/3", "0.2500", "91.25 %", "1,234", "1 h ago", ""]
    assert cells(result.stdout, "a,seed=1")[1:3] == ["running", "1.5/3"]
    failed = cells(result.stdout, "b,seed=0")
    assert (failed[1], failed[-1]) == ("failed", "RuntimeError: [bold]no luck[/]")
    assert cells(result.stdout, "b,seed=1") == ["b,seed=1", "not started", "", "", "", "", "", ""]
    assert cells(result.stdout, "c,seed=7")[1] == "killed"


def test_workdirs_are_found_at_and_below_the_folder_and_a_damaged_one_hides_no_other(workdir, capsys):
    run_of(workdir, "a,seed=0", "done")
    for inner in ("trials", "a,seed=0/not-looked-at"):
        (workdir / inner).mkdir()
        write_json(workdir / inner / "experiment.json", {"experiment": "bypass", "preset": "trials"})
    damaged = workdir.parent / "damaged"
    damaged.mkdir()
    (damaged / "experiment.json").write_text("{")
    assert [one.path for one in overview.look(workdir.parent)] == [workdir, workdir / "trials", damaged]
    assert main(["runs", str(workdir.parent)]) == 0
    assert "experiment.json: cannot be read" in capsys.readouterr().out


def test_a_line_that_is_being_written_and_a_damaged_run_do_no_harm(workdir):
    directory = run_of(workdir, "a,seed=0", "done", top1=0.75)
    with (directory.path / "metrics.jsonl").open("a") as file:
        file.write('{"split": "eval", "step": 9, "epo')
    (run_of(workdir, "b,seed=0", "done").path / "status.json").write_text("[]")
    ((one,),) = [overview.look(workdir)]
    found = {each.name: each for each in one.runs}
    assert (found["a,seed=0"].top1, found["b,seed=0"].status) == (0.75, "unreadable")


def test_following_says_what_is_new_and_ends_when_all_has_ended(workdir, capsys):
    for name in PLANNED[:3]:
        run_of(workdir, name, "done")

    def finish():
        time.sleep(0.3)
        run_of(workdir, PLANNED[3], "diverged", top1=0.1)

    thread = threading.Thread(target=finish)
    thread.start()
    assert main(["runs", str(workdir), "--follow", "--every", "0.05"]) == 0
    thread.join()
    news = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{workdir / PLANNED[3]}: ")]
    assert news[-1].startswith(f"{workdir / PLANNED[3]}: diverged, 1.5/3, 0.2500, 10.00 %, 1,234, ")


def test_what_cannot_be_listed_is_refused(tmp_path, capsys):
    for arguments, message in (
        ([str(tmp_path)], f"DIR: {tmp_path} holds no workdir of launch.py"),
        ([str(tmp_path / "no")], f"DIR: {tmp_path / 'no'} is no folder"),
        ([str(tmp_path), "--every", "3"], "--every: is for --follow only"),
        ([str(tmp_path), "--follow", "--every", "0"], "--every: 0 is not allowed; it must be above 0"),
    ):
        assert main(["runs", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_an_age_is_in_its_largest_unit():
    assert [age(seconds) for seconds in (0.4, 59.9, 3599, 86_399, 200_000)] == ["0 s", "59 s", "59 min", "23 h", "2 d"]
