"""The disk that is written to is full, or turns read-only."""

import pytest
from trainings import RUN, assert_same, command, one_line

from squeezenet_jax.runs import checkpoint


@pytest.mark.slow
@pytest.mark.long
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
@pytest.mark.long
def test_a_workdir_that_turns_read_only_ends_a_run_in_one_line(tmp_path, digits, in_namespace):
    # A second mount of it on top: a remount is refused while the run has a file there open for writing.
    script = f"""
        disk=$1; out=$2; shift 2
        mount -t tmpfs none "$disk"
        mkdir "$out/read-only"; mount --bind "$disk" "$out/read-only"; mount -o remount,bind,ro "$out/read-only"
        "$@" > "$out/1.out" 2> "$out/1.err" & process=$!
        until ls "$disk/runs/{RUN}/checkpoints/"*.safetensors > "$out/ls" 2>&1; do kill -0 $process; sleep 0.02; done
        mount --bind "$out/read-only" "$disk"
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
