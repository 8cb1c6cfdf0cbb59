"""Real faults in real processes: what a person then sees, and that nothing is lost.

Every training here has the same settings, so that one of them compiles and the others do not; how an uninterrupted one
ends is what the others must end with, bit for bit.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import test_processes
from PIL import Image
from tiny_settings import TINY

from squeezenet_jax import checkpoint

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")

ROOT = Path(__file__).parents[1]
RUN = "bypass=none,seed=0"
CONFIG = TINY | {
    "model.kernel_init": "he_uniform",
    "data.channels": 3,
    "train.epochs": 60.0,
    "train.eval_every_epochs": 10.0,
}
TOTAL_STEPS = 360
ON_DEMAND = {  # decoded when they are asked for
    "data.train_split": "train",
    "data.eval_split": "test",
    "data.crop": "random_resized",
    "data.crop_min_area": 0.5,
    "data.eval_resize": 12,
}
CLASSES = 10


def command(workdir, *args, only=RUN, **overrides):
    config = CONFIG | {name.replace("__", "."): value for name, value in overrides.items()}
    flags = [f"--config.{name}={value}" for name, value in config.items()]
    experiment = ["--config", "experiments/bypass.py", "--only", only]
    return [sys.executable, "launch.py", *experiment, *flags, "--workdir", str(workdir), *args]


ENVIRONMENT = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}


def launch(workdir, **overrides):
    return subprocess.run(
        command(workdir, **overrides), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=200
    )


@pytest.fixture
def start():
    """Starts a training, in a session of its own: whatever of it is left at the end of the test is killed."""
    started = []

    def start(workdir, **overrides):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            command(workdir, **overrides), cwd=ROOT, env=ENVIRONMENT, text=True, start_new_session=True, **pipes
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(condition, *processes, seconds=120, pause=0.005):
    """Waits for something that happens while these processes run."""
    deadline = time.monotonic() + seconds
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(pause)


def kill(process):
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL


def finish(process):
    output = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def newest(run):
    return max(checkpoint.steps(run / "checkpoints"), default=0)


def status(run):
    return json.loads((run / "status.json").read_text())["status"]


def metrics(run, split):
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["split"] == split]


def result(run):
    """What must not depend on what happened on the way."""
    step, arrays = checkpoint.read_newest(run / "checkpoints")
    losses = [(record["step"], record["loss"]) for record in metrics(run, "train")]
    return step, arrays, metrics(run, "eval"), losses


def assert_same(run, expected, *, same_windows=True):
    """`same_windows`: it was resumed from regular checkpoints only, so that its log lines are the same, too."""
    step, arrays, evaluations, losses = result(run)
    expected_step, expected_arrays, expected_evaluations, expected_losses = expected
    assert step == expected_step == TOTAL_STEPS
    assert evaluations == expected_evaluations
    steps = [step for step, _ in losses]
    assert steps == sorted(set(steps)) and steps[-1] == TOTAL_STEPS
    if same_windows:
        assert losses == expected_losses
    assert arrays.keys() == expected_arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected_arrays[name], err_msg=name)
    assert not list(run.glob(".*")) + list(run.glob("checkpoints/.*"))  # scratch files


def one_line(stderr, *parts):
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """How an uninterrupted run ends."""
    workdir = tmp_path_factory.mktemp("digits")
    done = launch(workdir)
    assert done.returncode == 0, done.stderr
    return result(workdir / RUN)


def encoded(seed, kind="JPEG", mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of as many pictures of noise as there are digits, and how an uninterrupted run on it ends."""
    root = tmp_path_factory.mktemp("pictures")
    for seed in range(96 + 50):
        path = root / ("train" if seed < 96 else "test") / f"class{seed % CLASSES}" / f"{seed}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(seed))
    workdir = tmp_path_factory.mktemp("on_demand")
    done = launch(workdir, **folder(root))
    assert done.returncode == 0, done.stderr
    return root, result(workdir / RUN)


def folder(root, **overrides):
    return ON_DEMAND | {"data.name": "folder", "data.dir": root} | overrides


# -- kills -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_was_killed_twenty_times_ends_as_if_it_had_not_been(tmp_path, digits, start):
    rng = random.Random(0)
    moments = ["start"] * 6 + ["steps"] * 8 + ["save"] * 6
    rng.shuffle(moments)
    run, half_written = tmp_path / RUN, 0
    checkpoints = run / "checkpoints"

    def scratch():
        return {name for name in os.listdir(checkpoints) if name.startswith(".")} if checkpoints.exists() else set()

    for moment in moments:
        before, left = newest(run), scratch()
        process = start(tmp_path)
        if moment == "start":
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=rng.uniform(0, 4))
        elif moment == "steps":
            wanted = before + 5 * rng.randrange(1, 3)
            wait_until(lambda wanted=wanted: newest(run) >= wanted, process)
            time.sleep(rng.uniform(0, 0.02))
        else:
            wait_until(lambda left=left: scratch() - left, process, pause=0)
        kill(process)
        half_written += bool(scratch() - left)
        assert status(run) == "running" if (run / "status.json").exists() else moment == "start"
    assert half_written  # kills did meet saves
    stdout, _ = finish(start(tmp_path))
    assert "resumed at step" in stdout and "unreadable" not in stdout
    assert_same(run, digits)
    assert len(json.loads((run / "run.json").read_text())["earlier_starts"]) >= 14


@pytest.mark.slow
def test_damaged_checkpoints_are_named_moved_aside_and_made_again(tmp_path, digits, start):
    process = start(tmp_path / "runs", train__keep_checkpoints=3)
    run = tmp_path / "runs" / RUN
    wait_until(lambda: newest(run) >= 50, process)
    kill(process)
    saved = checkpoint.steps(run / "checkpoints")[-3:]
    for damaged in (2, 3):  # the third is whole; none is
        workdir = tmp_path / str(damaged)
        shutil.copytree(tmp_path / "runs", workdir)
        checkpoints = workdir / RUN / "checkpoints"
        for step, spoil in zip(reversed(saved), (cut_off, flip_a_bit, empty)[:damaged], strict=False):
            spoil(checkpoints / f"{step}.safetensors")
        gone = [step for step in checkpoint.steps(checkpoints) if step < saved[0]]  # killed before it was removed
        for step in gone:
            (checkpoints / f"{step}.safetensors").unlink()
        done = launch(workdir, train__keep_checkpoints=3)
        assert done.returncode == 0, done.stderr
        for step in saved[-damaged:]:
            assert f"checkpoint {step} is unreadable" in done.stdout
            assert (checkpoints / f"{step}.unreadable").is_file()
        assert (f"resumed at step {saved[0]}" if damaged == 2 else "started") in done.stdout
        assert done.stdout.count("resumed at") == (damaged == 2)
        assert_same(workdir / RUN, digits)


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


# -- disks -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_namespace(tmp_path_factory):
    """A folder to mount at, and what runs a shell script with mounts that nobody else sees: $1 is it, others follow."""
    place = tmp_path_factory.mktemp("disk")

    def run(script, arguments):
        mounting = ["unshare", "-rm", "sh", "-euc", script, "sh", str(place), *arguments]
        return subprocess.run(mounting, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=250)

    if not shutil.which("unshare"):
        pytest.skip("needs unshare, of util-linux")
    tried = run('mount -t tmpfs none "$1"; mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"', [])
    if tried.returncode:
        pytest.skip(f"mounting in a namespace is not allowed here ({tried.stderr.strip()})")
    return place, run


@pytest.mark.slow
def test_a_full_disk_ends_a_run_in_one_line_and_costs_no_checkpoint(tmp_path, digits, in_namespace):
    size = sum(array.nbytes for array in digits[1].values())
    room = 2 * size + size // 2 + 60_000  # for two checkpoints, not for a third
    script = f"""
        disk=$1; out=$2; shift 2
        mount -t tmpfs -o size={16 << 20} none "$disk"
        head -c $(({16 << 20} - {room})) /dev/zero > "$disk/filler"
        for attempt in 1 2; do
            code=0; "$@" > "$out/$attempt.out" 2> "$out/$attempt.err" || code=$?
            echo $code > "$out/$attempt.code"; cp -a "$disk/runs" "$out/$attempt"
        done
        rm "$disk/filler"
        "$@"
        cp -a "$disk/runs" "$out/mended"
    """
    place, run_there = in_namespace
    done = run_there(script, [str(tmp_path), *command(place / "runs")])
    assert done.returncode == 0, done.stderr
    for attempt in ("1", "2"):  # started again before there is room, nothing changes
        one_line((tmp_path / f"{attempt}.err").read_text(), "No space left on device", "checkpoints/15.safetensors")
        assert (tmp_path / f"{attempt}.code").read_text() == "2\n"
        run = tmp_path / attempt / RUN
        assert sorted(path.name for path in run.glob("checkpoints/*")) == ["10.safetensors", "5.safetensors"]
        for step in (5, 10):
            checkpoint.read(run / f"checkpoints/{step}.safetensors")
        assert not list(run.rglob(".*"))
    assert "resumed at step 10" in done.stdout
    assert_same(tmp_path / "mended" / RUN, digits)


@pytest.mark.slow
def test_a_workdir_that_turns_read_only_ends_a_run_in_one_line(tmp_path, digits, in_namespace):
    # Mounted over itself: a plain remount is refused while the run's lock is open for writing.
    script = f"""
        disk=$1; out=$2; shift 2
        mount -t tmpfs none "$disk"
        "$@" > "$out/1.out" 2> "$out/1.err" & process=$!
        until ls "$disk/runs/{RUN}/checkpoints/"*.safetensors > "$out/ls" 2>&1; do kill -0 $process; sleep 0.02; done
        mount --bind "$disk" "$disk"
        mount -o remount,bind,ro "$disk"
        code=0; wait $process || code=$?
        echo $code > "$out/1.code"
        code=0; "$@" > "$out/2.out" 2> "$out/2.err" || code=$?
        echo $code > "$out/2.code"
        umount "$disk"
        "$@"
        cp -a "$disk/runs" "$out/mended"
    """
    place, run_there = in_namespace
    done = run_there(script, [str(tmp_path), *command(place / "runs")])
    assert done.returncode == 0, (done.stderr, (tmp_path / "1.err").read_text())
    one_line((tmp_path / "1.err").read_text(), str(place), "Read-only file system")
    one_line((tmp_path / "2.err").read_text(), "--workdir", "is not writable")
    assert [(tmp_path / f"{attempt}.code").read_text() for attempt in (1, 2)] == ["2\n", "2\n"]
    assert "resumed at step" in done.stdout
    assert_same(tmp_path / "mended" / RUN, digits)


# -- several at once ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_starts_share_the_runs_of_a_workdir(tmp_path, digits, start):
    runs = [tmp_path / f"bypass=none,seed={seed}" for seed in (0, 1)]
    both = {"only": "bypass=none,seed=0,seed=1"}
    first = start(tmp_path, **both)
    wait_until((runs[0] / "run.json").exists, first)
    first.send_signal(signal.SIGSTOP)  # as slow as it takes
    second = start(tmp_path, **both)
    wait_until((runs[1] / "run.json").exists, second)
    first.send_signal(signal.SIGCONT)
    outputs = [finish(process)[0] for process in (first, second)]
    assert f"is being run by {os.uname().nodename}, process {first.pid}" in outputs[1]
    for number, run in enumerate(runs):
        assert [f"{run.name}: started" in output for output in outputs] == [number == 0, number == 1]
        assert json.loads((run / "run.json").read_text())["earlier_starts"] == []
    assert_same(runs[0], digits)
    assert newest(runs[1]) == TOTAL_STEPS


@pytest.mark.slow
def test_a_run_that_is_being_run_is_left_alone_and_free_once_its_process_is_killed(tmp_path, digits, start):
    first, run = start(tmp_path), tmp_path / RUN
    wait_until(lambda: newest(run), first)
    first.send_signal(signal.SIGSTOP)
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    second = launch(tmp_path)
    assert second.returncode == 2
    one_line(second.stderr, str(tmp_path), f"is being run by {os.uname().nodename}, process {first.pid}")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
    kill(first)
    third = launch(tmp_path)
    assert third.returncode == 0, third.stderr
    assert "resumed at step" in third.stdout
    assert_same(run, digits)


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(pictures, tmp_path_factory):
    """The pictures as a TFDS data set."""
    out = tmp_path_factory.mktemp("prepared")
    preparing = [sys.executable, "-m", "squeezenet_jax", "prepare", pictures[0], "--name", "noise", "--out", out]
    done = subprocess.run(list(map(str, preparing)), cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return out


def shard(data_dir):
    (path,) = data_dir.glob("noise/1.0.0/noise-train.array_record-*")
    return path


def flip_bytes(path):
    """In place, so that a process which has the file open meets them; the ends, where the index is, stay."""
    with path.open("r+b") as file:
        content = bytearray(file.read())
        for place in range(len(content) // 8, len(content) * 7 // 8, 100):
            content[place] ^= 0xFF
        file.seek(0)
        file.write(content)


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [cut_off, flip_bytes])
def test_a_damaged_data_set_is_named_in_one_line(tmp_path, prepared, spoil):
    shutil.copytree(prepared, tmp_path / "data")
    spoil(shard(tmp_path / "data"))
    done = launch(tmp_path / "runs", **tfds(tmp_path / "data", data__crop="whole"))
    assert done.returncode == 2
    one_line(done.stderr, f"{tmp_path}/data/noise/1.0.0: damaged data set")


def tfds(data_dir, **overrides):
    return ON_DEMAND | {"data.name": "noise", "data.dir": data_dir} | overrides


@pytest.mark.slow
def test_damage_that_data_suffer_during_a_run_costs_no_step(tmp_path, pictures, prepared, start):
    data = tmp_path / "data"
    shutil.copytree(prepared, data)
    sound, run = shard(data).read_bytes(), tmp_path / "runs" / RUN
    process = start(tmp_path / "runs", **tfds(data))
    wait_until(lambda: newest(run), process)
    flip_bytes(shard(data))
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 2
    one_line(stderr, f"{data}/noise/1.0.0: damaged data set")
    assert status(run) == "failed"
    saved = newest(run)
    assert metrics(run, "train")[-1]["step"] == saved < TOTAL_STEPS  # whatever was taken was saved
    shard(data).write_bytes(sound)
    done = launch(tmp_path / "runs", **tfds(data))
    assert done.returncode == 0, done.stderr
    assert f"resumed at step {saved}" in done.stdout
    assert_same(run, pictures[1], same_windows=False)


@pytest.mark.slow
def test_images_that_cannot_be_read_are_named_once_and_do_not_count(tmp_path):
    noise = encoded(0)
    odd = {
        "zero.jpg": b"",
        "cut.jpg": noise[: len(noise) // 2],
        "text.jpg": b"not an image\n",
        os.fsdecode(b"caf\xe9\n.jpg"): b"",
        "cmyk.jpg": encoded(1, mode="CMYK"),
        "png.JPEG": encoded(2, "PNG"),
        "grey.jpg": encoded(3, mode="L"),
    }
    data, unreadable = tmp_path / "data", ("zero.jpg", "cut.jpg", "text.jpg", r"caf\udce9\n.jpg")
    for split in ("train", "test"):
        for label in range(CLASSES):
            (data / split / f"class{label}").mkdir(parents=True)
            for seed in range(9 if split == "train" else 4):
                (data / split / f"class{label}" / f"{seed}.jpg").write_bytes(encoded(100 * label + seed))
        for name, content in odd.items():
            (data / split / "class3" / name).write_bytes(content)
    done = launch(tmp_path / "runs", **folder(data, **{"train.epochs": 2.0, "train.eval_every_epochs": 1.0}))
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / RUN
    lines = (run / "unreadable.txt").read_text().splitlines()
    expected = sorted(f"{data}/{split}/class3/{name}" for split in ("train", "test") for name in unreadable)
    assert sorted(line.partition(": ")[0] for line in lines) == expected
    assert all(line.partition(": ")[2] for line in lines)  # a reason
    for name in expected:
        assert done.stdout.count(f"unreadable: {name}: ") == 1
    assert {record["count"] for record in metrics(run, "eval")} == {40 + 3}


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_diverges_is_named_and_the_next_one_is_run(tmp_path):
    exploding = {"optimizer.name": "sgd", "optimizer.peak_lr": 1e30, "optimizer.clip_norm": 0.0}
    done = launch(tmp_path, only="bypass=none,seed=0,seed=1", **exploding, **{"model.conv10_relu": False})
    assert done.returncode == 0, done.stderr
    assert "run 2/2 bypass=none,seed=1: started" in done.stdout
    assert "2 diverged" in done.stdout
    for seed in (0, 1):
        assert status(tmp_path / f"bypass=none,seed={seed}") == "diverged"


# -- processes that make the batches -----------------------------------------------------------------------------------


def members(session):
    """The processes of a session, by id, with their command lines."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found[int(stat.parent.name)] = (stat.parent / "cmdline").read_bytes().decode()
    return found


def data_workers(process):
    return [number for number, line in members(process.pid).items() if "spawn_main" in line]


@pytest.mark.slow
def test_data_workers_are_replaced_when_killed_end_with_their_process_and_change_nothing(tmp_path, pictures, start):
    root, expected = pictures
    process, run = start(tmp_path, **folder(root, **{"data.workers": 2})), tmp_path / RUN
    wait_until(lambda: newest(run), process)
    workers = data_workers(process)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    wait_until(lambda: len(set(data_workers(process)) - set(workers)) == 2, process)
    before = newest(run)
    wait_until(lambda: newest(run) > before, process)
    process.kill()
    wait_until(lambda: not members(process.pid), seconds=5)
    stdout, _ = process.communicate()
    assert stdout.count("a worker process for data died; starting the workers again") == 1
    finish(start(tmp_path, **folder(root, **{"data.workers": 2})))
    assert_same(run, expected)  # which threads made


# -- hangs -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hang_ends_the_process_which_says_where_and_is_resumed(tmp_path, pictures, start):
    root, expected = pictures
    data = tmp_path / "data"
    shutil.copytree(root, data)
    image, run = next(data.glob("train/*/*.jpg")), tmp_path / "runs" / RUN
    settings = folder(data, **{"train.hang_minutes": 0.15})
    process = start(tmp_path / "runs", **settings)
    wait_until(lambda: newest(run), process)
    image.rename(tmp_path / "aside")
    os.mkfifo(image)  # to read it is to wait for somebody who writes
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    (hung,) = [line for line in stdout.splitlines() if "HUNG" in line]
    assert "in reading the batch of step" in hung
    assert str(run / "hang.txt") in hung
    assert status(run) == "hung"
    assert "folder.py" in (run / "hang.txt").read_text()
    image.unlink()
    (tmp_path / "aside").rename(image)
    stdout, _ = finish(start(tmp_path / "runs", **settings))
    assert "resumed at step" in stdout
    assert_same(run, expected)


@pytest.mark.slow
def test_a_stopped_data_worker_is_a_hang_too_and_ends_with_the_process(tmp_path, pictures, start):
    settings = folder(pictures[0], **{"data.workers": 1, "train.hang_minutes": 0.15})
    process, run = start(tmp_path, **settings), tmp_path / RUN
    wait_until(lambda: newest(run), process)
    (worker,) = data_workers(process)
    os.kill(worker, signal.SIGSTOP)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "in reading the batch of step" in stdout
    wait_until(lambda: not members(process.pid), seconds=5)


# -- processes that train together -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_where_one_of_two_processes_is_killed_the_other_ends_and_both_resume(tmp_path):
    """Neither can tell a dead partner from a slow one but by its heartbeats."""
    overrides = {"train.checkpoint_every_steps": 5, "model.kernel_init": "he_uniform"}
    alone = test_processes.start(tmp_path / "alone", devices=2, **overrides)
    workdir, started = tmp_path / "two", []
    run = workdir / "bypass=simple,seed=1"
    try:
        test_processes.finish(alone)
        for victim in (1, 0):
            before = newest(run)
            started = test_processes.start_two(workdir, devices=1, **overrides)
            wait_until(lambda before=before: newest(run) > before, *started)
            began = time.monotonic()
            started[victim].kill()
            started[1 - victim].communicate(timeout=60)
            assert started[1 - victim].returncode not in (0, None)
            assert time.monotonic() - began < 45
            assert newest(run) < test_processes.TOTAL_STEPS
        started = test_processes.start_two(workdir, devices=1, **overrides)
        test_processes.finish(*started)
    finally:
        for process in (alone, *started):
            process.kill()
            process.wait()
    test_processes.assert_same(test_processes.results(workdir), test_processes.results(tmp_path / "alone"))
