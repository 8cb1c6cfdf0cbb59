"""Runs at the same time: one of their processes is killed, or all are told to end; the disk they share is full."""

import contextlib
import os
import signal
from pathlib import Path

import pytest
from trainings import (
    DEVICES,
    SEEDS,
    TOTAL_STEPS,
    assert_same,
    command,
    descendants,
    finish,
    newest,
    one_line,
    status,
    two_at_a_time,
    wait_until,
)

from squeezenet_jax.runs import checkpoint


def pid_at(run):
    """Who holds its lock."""
    return int((run / "lock").read_text().split()[-1])


def has_ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def catches(pid, number):
    (mask,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")]
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


def both_are_under_way(workdir, before=0):
    runs = (workdir / "bypass=none,seed=0", workdir / "bypass=none,seed=1")
    return all(newest(run) > before for run in runs)


def assert_all_same(workdir, alone):
    for run, expected in alone.items():
        assert_same(workdir / run, expected, same_windows=False)


@pytest.mark.slow
@pytest.mark.long
def test_a_run_whose_process_is_killed_costs_the_others_nothing_and_is_resumed(tmp_path, alone, start):
    process = two_at_a_time(start, tmp_path)
    victim = tmp_path / "bypass=none,seed=0"
    wait_until(lambda: newest(victim), process)
    os.kill(pid_at(victim), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 1, stderr
    assert f"{victim.name}: KILLED: its process was killed by SIGKILL" in stdout
    assert "1 killed" in stdout  # the table
    assert status(victim) == "running" and newest(victim) < TOTAL_STEPS
    assert {status(tmp_path / run) for run in alone if run != victim.name} <= {"done", "stalled"}
    stdout, _ = finish(two_at_a_time(start, tmp_path))
    assert "resumed at step" in stdout and stdout.count("already") == len(alone) - 1
    assert_all_same(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.long
def test_however_all_are_ended_none_is_left_and_all_are_resumed(tmp_path, alone, start):
    def kill(process):
        process.kill()
        process.wait()
        return -signal.SIGKILL

    def interrupt(process):  # a terminal's Ctrl-C goes to all of the group
        os.killpg(process.pid, signal.SIGINT)
        return 75

    def interrupt_twice(process):
        below = descendants(process.pid)
        for pid in below:  # they would be quick
            os.kill(pid, signal.SIGSTOP)
        os.killpg(process.pid, signal.SIGINT)
        wait_until(lambda: not catches(process.pid, signal.SIGINT))
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        return -signal.SIGINT

    for number, end in enumerate((kill, interrupt_twice, interrupt)):
        process = two_at_a_time(start, tmp_path)
        before = TOTAL_STEPS * number // 4
        wait_until(lambda before=before: both_are_under_way(tmp_path, before), process)
        below = descendants(process.pid)
        assert len(below) >= 2
        code = end(process)
        output = process.communicate(timeout=100)
        assert process.returncode == code, output
        wait_until(lambda below=below: all(map(has_ended, below)))
    stdout, _ = finish(two_at_a_time(start, tmp_path))
    assert "resumed at step" in stdout
    assert_all_same(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.long
def test_a_full_disk_ends_all_in_one_line_and_costs_no_checkpoint(tmp_path, alone, in_namespace):
    size = sum(array.nbytes for array in alone["bypass=none,seed=0"][1].values())
    room = 3 * size + size // 2 + 60_000  # two runs have two checkpoints each
    script = f"""
        disk=$1; out=$2; shift 2
        export JAX_NUM_CPU_DEVICES={DEVICES}
        mount -t tmpfs -o size={16 << 20} none "$disk"
        head -c $(({16 << 20} - {room})) /dev/zero > "$disk/filler"
        code=0; "$@" > "$out/1.out" 2> "$out/1.err" || code=$?
        echo $code > "$out/1.code"; cp -a "$disk/runs" "$out/full"
        rm "$disk/filler"
        "$@"
        cp -a "$disk/runs" "$out/mended"
    """
    place, run_there = in_namespace
    done = run_there(script, [str(tmp_path), *command(place / "runs", "--jobs=2", only=SEEDS)])
    assert done.returncode == 0, done.stderr
    one_line((tmp_path / "1.err").read_text(), "No space left on device", "checkpoints/")
    assert (tmp_path / "1.code").read_text() == "2\n"
    saved = list((tmp_path / "full").glob("*/checkpoints/*.safetensors"))
    assert saved  # which run was how far is the machine's to say
    for path in saved:
        checkpoint.read(path)
    assert not list((tmp_path / "full").rglob(".*"))
    assert_all_same(tmp_path / "mended", alone)
