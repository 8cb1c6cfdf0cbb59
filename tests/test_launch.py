"""The command line, as a person uses it: real processes, real runs of a shrunken shipped experiment."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tiny_settings import SHRUNK, as_flags

ROOT = Path(__file__).parents[1]


def launch(*args, cwd=ROOT, **kwargs):
    command = [sys.executable, str(ROOT / "launch.py"), *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280, **kwargs)


def test_list_needs_none_of_the_slow_imports():
    script = (
        "import sys, runpy; sys.argv = ['launch.py', '--config', 'experiments/bypass.py', '--list']\n"
        "try: runpy.run_path('launch.py', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'jax', 'flax', 'orbax', 'optax', 'tensorflow_datasets', 'matplotlib'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "bypass=complex,seed=2" in result.stdout
    assert "3 seeds for each setting show differences of 3.3" in result.stdout
    assert "269,706" in result.stdout  # parameters of the complex bypass at width 0.5 with ten classes


BYPASS = "experiments/bypass.py"
TWO_PROCESSES = ("--coordinator=127.0.0.1:9", "--num-processes=2", "--process-id=0")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([], ["--config is missing", BYPASS]),
        (["--config", "experiments/bypas.py"], ["experiments/bypas.py", f'did you mean "{BYPASS}"']),
        (["--config", "experiments/base.py"], ["experiments/base.py is not an experiment"]),
        (["--config", BYPASS, f"--config={BYPASS}:cifar10_32"], ["--config: is given more than once"]),
        (["--config", f"{BYPASS}:"], [f"--config: {BYPASS}: names no preset"]),
        (["--config", f"{BYPASS}:digit"], ["preset", '"digit"', "digits, fashion_mnist", 'did you mean "digits"']),
        (["--config", BYPASS, "--config.optimizer.peak_lrr=1"], ['did you mean "optimizer.peak_lr"']),
        (["--config", BYPASS, "--config.optimizer={'a': 1}"], ['unknown value "optimizer"']),
        (["--config", BYPASS, "--config.train.epochs=many"], ["train.epochs", "many"]),
        (["--config", BYPASS, "--config.model.bypass=simple"], ["model.bypass", "--only bypass="]),
        (["--config", BYPASS, "--config.model.kernel_init=he"], ["model.kernel_init", '"he"', "he_uniform"]),
        (["--config", BYPASS, "--config.data.name=digit"], ["data.name", "digits, fashion_mnist"]),
        (["--config", BYPASS, "--config.data.eval_split=tset"], ["data.eval_split", "train, test", '"test"']),
        (["--config", BYPASS, "--config.data.image_size=4"], ["data.image_size: 4", "at least 7"]),
        (["--config", BYPASS, "--config.data.num_classes=100"], ["data.num_classes: 100", "digits", "10"]),
        (["--config", BYPASS, "--only="], ["--only", 'unknown value ""', "bypass, seed"]),
        (["--config", BYPASS, "--only", "bypass=simpel"], ["--only bypass", "none, simple, complex", '"simple"']),
        (["--config", BYPASS, "--wrokdir", "x"], ["wrokdir", "workdir"]),
        (["--config", BYPASS, "--trials"], ["--trials: is for --tune only"]),
        (["--config", BYPASS, "stray"], ["stray"]),
        (["--config", BYPASS, "--config.train.batch_size=33"], ["train.batch_size: 33", "multiple of the 8 devices"]),
        (["--config", BYPASS, "--config.model.init_from=no.safetensors"], ["no.safetensors", "no such file"]),
        (["--config", "experiments/finetune.py"], ["model.init_from", "--config.model.init_from="]),
        (["--config", BYPASS, "--workdir", f"{BYPASS}/runs"], ["--workdir", "not writable"]),
        (["--config", BYPASS, "--jobs", "2", "--launcher", "slurm"], ["--jobs", "not for --launcher slurm"]),
        (["--config", BYPASS, "--jobs", "2", "--process-id=0"], ["--jobs", "not for --coordinator and its like"]),
        (["--config", BYPASS, "--launcher=slurm", *TWO_PROCESSES], ["--coordinator:", "not for --launcher slurm"]),
        (["--config", BYPASS, "--profile=5", *TWO_PROCESSES], ["--profile:", "not for --coordinator"]),
        (["--config", BYPASS, "--profile=5", "--jobs", "2"], ["--profile:", "not for --jobs"]),
        (["--config", BYPASS, "--profile=5", "--launcher=slurm"], ["--profile:", "not for --launcher slurm"]),
        (["--config", BYPASS, "--signal", *TWO_PROCESSES], ["--signal:", "not for --coordinator"]),
        (["--config", BYPASS, "--signal", "--jobs=auto"], ["--signal:", "not for --jobs"]),
        (["--config", BYPASS, "--profile=5", "--report"], ["--report: prints and stops, as --profile does"]),
        (["--config", BYPASS, "--signal", "--list"], ["--signal: prints and stops, as --list does"]),
    ],
    ids=lambda value: " ".join(value[-1:]) if isinstance(value, list) else None,
)
def test_wrong_input_is_one_line_and_changes_nothing(args, parts, tmp_path):
    for name in ("experiments", "squeezenet_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    result = launch(*args, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    for part in parts:
        assert part in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiments", "squeezenet_jax"]


@pytest.mark.parametrize("flag", ["--profile=5", "--signal"])
def test_several_tasks_that_would_each_look_at_the_same_run_are_refused(flag):
    srun = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    result = launch("--config", BYPASS, flag, env=os.environ | srun | {"SLURM_NTASKS": "2"})
    assert result.returncode == 2
    assert result.stderr == (
        f"error: {flag.partition('=')[0]}: looks at a run in this one process, but several were started; start one\n"
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole comparison: two bypasses, two seeds each, on eight devices."""
    workdir = tmp_path_factory.mktemp("runs")
    runs = ["--only", "bypass=none,bypass=simple,seed=0,seed=1", "--workdir", str(workdir)]
    args = ["--config", BYPASS, *as_flags(SHRUNK), *runs]
    return args, workdir, launch(*args)


def test_one_command_trains_compares_and_reports(finished):
    _, workdir, result = finished
    assert result.returncode == 0, result.stderr
    assert "run 4/4 bypass=simple,seed=1" in result.stdout
    assert "top-1" in result.stdout
    report = json.loads((workdir / "report.json").read_text())
    assert (report["experiment"], report["preset"], report["baseline"]) == ("bypass", "digits", "bypass=none")
    n = {row["name"]: row["n"] for row in report["rows"]}
    assert n == {"bypass=none": 2, "bypass=simple": 2, "bypass=complex": 0}  # what --only left out is named, not hidden
    simple = report["rows"][1]
    accuracies = {}
    for name in ("none", "simple"):
        for seed in (0, 1):
            lines = (workdir / f"bypass={name},seed={seed}" / "metrics.jsonl").read_text().splitlines()
            accuracies[name, seed] = json.loads(lines[-1])["top1"]
    differences = [accuracies["simple", seed] - accuracies["none", seed] for seed in (0, 1)]
    assert simple["delta"]["mean"] == pytest.approx(sum(differences) / 2)
    assert simple["top1"]["mean"] == pytest.approx((accuracies["simple", 0] + accuracies["simple", 1]) / 2)
    assert (simple["params"], simple["overrides"]) == (report["rows"][0]["params"], {"model.bypass": "simple"})
    rows = list(csv.DictReader((workdir / "report.csv").open()))
    means = [row["top1"]["mean"] for row in report["rows"]]
    assert [float(row["top1_mean"]) if row["top1_mean"] else None for row in rows] == means
    assert "<svg" in (workdir / "report.html").read_text()
    assert (workdir / "report.md").read_text().startswith("# bypass on digits")


def test_the_same_command_again_trains_nothing(finished):
    args, workdir, _ = finished
    metrics = {path: path.stat().st_mtime_ns for path in workdir.rglob("metrics.jsonl")}
    result = launch(*args)
    assert result.returncode == 0
    assert result.stdout.count("already") == 4
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("metrics.jsonl")} == metrics


def test_another_configuration_is_refused_in_the_same_workdir(finished):
    args, _, _ = finished
    result = launch(*args, "--config.optimizer.peak_lr=0.5")
    assert result.returncode == 2
    assert "optimizer.peak_lr is 0.002 there, 0.5 here" in result.stderr
    assert len(result.stderr.splitlines()) == 1


LONG = as_flags(SHRUNK | {"train.epochs": 20.0, "train.checkpoint_every_steps": 10})
ONE_RUN = ["--config", BYPASS, *LONG, "--only", "bypass=none,seed=0", "--workdir"]
TOTAL_STEPS = 120


def metrics_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    assert launch(*ONE_RUN, str(workdir)).returncode == 0
    return metrics_of(workdir / "bypass=none,seed=0")


ENDS = {
    "SIGTERM": lambda process: process.send_signal(signal.SIGTERM),
    "SIGINT": lambda process: process.send_signal(signal.SIGINT),
    "SIGHUP": lambda process: process.send_signal(signal.SIGHUP),
    "a closed pipe": lambda process: process.stdout.close(),
}


@pytest.mark.long
@pytest.mark.parametrize("end", ENDS)
def test_a_run_that_was_told_to_end_is_resumed_and_ends_as_if_it_had_not_been(tmp_path, uninterrupted, end):
    run = tmp_path / "runs" / "bypass=none,seed=0"
    args = [*ONE_RUN, str(tmp_path / "runs")]
    process = subprocess.Popen(
        [sys.executable, "launch.py", *args],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
    )
    deadline = time.monotonic() + 200
    while not list(run.glob("checkpoints/*.safetensors")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    ENDS[end](process)
    assert process.wait(timeout=100) == 75
    assert json.loads((run / "status.json").read_text())["status"] == "preempted"
    saved = max(int(path.stem) for path in run.glob("checkpoints/*.safetensors"))
    assert 0 < saved < TOTAL_STEPS
    result = launch(*args)
    assert result.returncode == 0, result.stderr
    assert "resumed at step" in result.stdout
    resumed = metrics_of(run)
    assert [r["step"] for r in resumed if r["split"] == "train"][-1] == TOTAL_STEPS
    results = [[r for r in metrics if r["split"] == "eval"] for metrics in (uninterrupted, resumed)]
    assert results[0] == results[1]  # to the last bit


def test_summary_prints_params_macs_and_layers_without_jax():
    args = ["summary", "--version", "v1.0", "--bypass", "complex", "--format", "json"]
    script = f"import sys; from squeezenet_jax.__main__ import main; main({args}); assert 'jax' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["params"] == 1_589_672
    assert summary["macs"] == sum(layer["macs"] for layer in summary["layers"])
    (squeeze,) = (layer for layer in summary["layers"] if layer["name"] == "fire2/squeeze1x1")
    assert {"shape": [55, 55, 16], "params": 1552, "macs": 4_646_400, "inputs": ["pool1"]}.items() <= squeeze.items()


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--version", "v1.2"], 'version: unknown value "v1.2"; allowed: v1.0, v1.1'),
        (["--image-size", "20"], "image_size: 20 is too small for this network; it must be at least 29"),
        (["--width", "wide"], "--width"),
        (["--bypas", "simple", "--stem", "tiny"], 'stem: unknown value "tiny"; allowed: card, small'),
    ],
)
def test_summary_refuses_wrong_input_in_one_line(args, part):
    command = [sys.executable, "-m", "squeezenet_jax", "summary", *args]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert part in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.long
def test_what_nohup_ignores_does_not_stop_a_run(tmp_path):
    run = tmp_path / "runs" / "bypass=none,seed=0"
    command = ["nohup", sys.executable, "launch.py", *ONE_RUN, str(tmp_path / "runs")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(run.glob("checkpoints/*.safetensors")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=200) == 0


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--config", BYPASS, "config.train.epochs=5"], ["config.train.epochs=5", "set as --config.train.epochs=5"]),
        (["--config", BYPASS, "--config.data.flip", "true"], ["is set as --config.data.flip=true"]),
        (["--config", BYPASS, "--flagfile=missing.txt"], ["missing.txt"]),
        (["--config", BYPASS, "--config.train.batch_size=2.5"], ["train.batch_size", "2.5"]),
        (["--config", BYPASS, "--config.data.eval_split=train"], ["shares 1,433 images with data.train_split"]),
        (["--config", BYPASS, "--config.data.crop=random_resized"], ["data.crop", "digits", "whole"]),
    ],
    ids=lambda value: " ".join(value[-1:]) if isinstance(value, list) else None,
)
def test_a_slip_of_the_pen_is_told_how_to_write_it(args, parts, tmp_path):
    result = launch(*args, "--workdir", str(tmp_path / "runs"))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    for part in parts:
        assert part in result.stderr
    assert not list(tmp_path.iterdir())


def test_it_works_from_any_folder(tmp_path):
    result = launch("--config", BYPASS, "--list", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "bypass=complex,seed=2" in result.stdout


def test_the_trials_of_a_tuned_sweep_are_listed_before_it():
    result = launch("--config", BYPASS, "--tune", "--list", "--only", "bypass=simple,seed=1")
    assert result.returncode == 0, result.stderr
    names = [line[1:].split(line[0])[0].strip() for line in result.stdout.splitlines() if "seed=" in line]
    rates = ("0.001", "0.002", "0.004", "0.008")
    assert names == [*(f"bypass=simple,peak_lr={rate},seed=1000000" for rate in rates), "bypass=simple,seed=1"]


def test_names_are_whole_in_a_pipe_and_in_a_narrow_terminal(tmp_path):
    name = "bypass=complex,seed=2"
    for environment in ({}, {"COLUMNS": "40"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        result = launch("--config", BYPASS, "--list", env=os.environ | environment)
        assert result.returncode == 0, result.stderr
        cells = [line[1:].split(line[0])[0].strip() for line in result.stdout.splitlines() if line[:1] in ("│", "|")]
        assert name in "".join(cells)
        assert "…" not in result.stdout


@pytest.mark.long
def test_devices_that_are_not_there_and_float64_are_one_line_or_nothing(tmp_path):
    args = [
        "--config",
        BYPASS,
        *as_flags(SHRUNK),
        "--only",
        "bypass=none,seed=0",
        "--workdir",
        str(tmp_path / "[runs]"),
    ]
    result = launch(*args, env=os.environ | {"JAX_PLATFORMS": "cuda"})
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "JAX_PLATFORMS: 'cuda' cannot be had here" in result.stderr
    result = launch(*args, env=os.environ | {"JAX_ENABLE_X64": "1"})
    assert result.returncode == 0, result.stderr
    assert f"Report: {tmp_path}/[runs]/report.html" in result.stdout
    (newest,) = sorted((tmp_path / "[runs]/bypass=none,seed=0/checkpoints").glob("*.safetensors"))[-1:]
    assert {x.dtype.name for x in load_file(newest).values()} <= {"float32", "int32"}
