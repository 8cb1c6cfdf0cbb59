"""`python -m squeezenet_jax prepare`: what it says, and how it ends."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from squeezenet_jax.__main__ import main

REPOSITORY = Path(__file__).parents[2]


def jpeg(seed, size=64):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def source(tmp_path):
    for split, number in (("train", 12), ("val", 4)):
        for i in range(number):
            path = tmp_path / "Flowers" / split / ("rose", "tulip")[i % 2] / f"{i:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(i))
    return tmp_path / "Flowers"


def run(*argv):
    return main(["prepare", *map(str, argv)])


def test_says_what_it_wrote_and_how_to_use_it(source, tmp_path, capsys):
    out = tmp_path / "my data"
    for first_line in (f"wrote {out}/flowers/1.0.0", f"{out}/flowers/1.0.0 is there already, complete"):
        assert run(source, "--out", out) == 0
        printed, errors = capsys.readouterr()
        assert printed.splitlines() == [
            first_line,
            "train: 12 images",
            "validation: 4 images",
            "2 classes, 0 unreadable files left out",
            f"use it with: --config.data.name=flowers --config.data.dir='{out}'",
        ]
        assert "left out:" not in errors
    assert len(tfds.data_source("flowers", data_dir=out, split="train", download=False)) == 12


def test_names_the_first_unreadable_files(source, tmp_path, capsys):
    for i in range(15):
        (source / "train" / "rose" / f"bad{i:02}.jpg").write_text("no image")
    assert run(source, "--out", tmp_path / "out", "--short-side", 32, "--name", "other") == 0
    printed, errors = capsys.readouterr()
    assert "train: 12 images" in printed and "15 unreadable files left out" in printed
    left_out = [line for line in errors.splitlines() if line.startswith("left out: ")]
    assert left_out == [f"left out: train/rose/bad{i:02}.jpg: no image" for i in range(10)]
    complete = tmp_path / "out" / "other" / "1.0.0" / "unreadable.txt"
    assert f"all 15 are in {complete}" in errors and len(complete.read_text().splitlines()) == 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["none", "--out", "out"], "none: no such file or folder"),
        (["Flowers"], "the following arguments are required: --out"),
        (["Flowers", "--out", "out", "--short-side", "0"], "--short-side: 0 is not allowed; it must be at least"),
        (["Flowers", "--out", "out", "--short-side", "x"], "--short-side: invalid int value"),
        (["Flowers", "--out", "out", "--name", "a-b"], '--name: "a-b" cannot be the name'),
        (["Flowers", "--out", "out", "--name", "digits"], "--name: digits means other images already"),
        (["Flowers/train", "--out", "out"], "has no split folders; allowed: train/<class>/<image>"),
        (["Flowers", "--out", "Flowers/train/rose/00.jpg"], "cannot be written"),
    ],
)
def test_wrong_commands_end_in_one_line(source, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert run(*options) == 2
    printed, errors = capsys.readouterr()
    lines = [line for line in errors.splitlines() if not line.startswith("listing ")]
    assert printed == "" and len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_higher_version_would_be_read_instead(source, tmp_path, capsys):
    assert run(source, "--out", tmp_path / "out") == 0
    (tmp_path / "out/flowers/1.0.0").rename(tmp_path / "out/flowers/10.0.0")
    capsys.readouterr()
    assert run(source, "--out", tmp_path / "out") == 2
    assert "flowers/10.0.0: would be read instead of a 1.0.0" in capsys.readouterr().err
    assert not (tmp_path / "out/flowers/1.0.0").exists()


def test_interrupted_it_says_how_to_continue_and_does(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (1024, 1024), "red").save(file, "JPEG")
    content = file.getvalue()
    with tarfile.open(tmp_path / "many.tar.xz", "w:xz", preset=0) as archive:
        for i in range(300):
            member = tarfile.TarInfo(f"train/{'ab'[i % 2]}/{i}.jpg")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    command = [sys.executable, "-m", "squeezenet_jax", "prepare", str(tmp_path / "many.tar.xz"), "--out", str(tmp_path)]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    part = tmp_path / "many" / "incomplete.1.0.0" / "data" / "many-train.array_record-00000-of-00001.part"
    while not part.exists():
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and printed == ""
    assert errors.splitlines()[-1] == "interrupted; the same command continues from here" and "Traceback" not in errors
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "train: 300 images" in done.stdout
