"""The data are damaged, before a run or during it; some images cannot be read."""

import os
import shutil

import pytest
from damage import cut_off, flip_bytes
from trainings import (
    CLASSES,
    RUN,
    TOTAL_STEPS,
    assert_same,
    encoded,
    folder,
    launch,
    metrics,
    newest,
    one_line,
    status,
    tfds,
    wait_until,
)


def shard(data_dir):
    (path,) = data_dir.glob("noise/1.0.0/noise-train.array_record-*")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [cut_off, flip_bytes])
def test_a_damaged_data_set_is_named_in_one_line(tmp_path, prepared, spoil):
    shutil.copytree(prepared, tmp_path / "data")
    spoil(shard(tmp_path / "data"))
    done = launch(tmp_path / "runs", **tfds(tmp_path / "data", data__crop="whole"))
    assert done.returncode == 2
    one_line(done.stderr, f"{tmp_path}/data/noise/1.0.0: damaged data set")


@pytest.mark.slow
@pytest.mark.long
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
@pytest.mark.long
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
    data, unreadable = tmp_path / "data", ("zero.jpg", "cut.jpg", "text.jpg", r"caf\xe9\n.jpg")
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
