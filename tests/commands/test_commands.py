"""What every command has in common: paths, names, wrong input, Ctrl-C."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys

import pytest
from small_network import CLASSES, REPOSITORY, fails, run

from squeezenet_jax import weights


@pytest.mark.long
def test_names_that_are_not_utf8_end_in_no_traceback(path, folder, tmp_path):
    """In processes of their own: with an output that can express less, and one that refuses surrogates."""
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    odd = data / "cat" / os.fsdecode(b"caf\xe9 \xe2\x82\xac.png")
    shutil.copy(next(folder.glob("cat/*.png")), odd)
    (data / "cat" / os.fsdecode(b"\xff.jpg")).write_text("no image")
    for encoding in ("ascii:strict", "utf-8:strict"):
        for argv in (
            ["predict", path, odd, "--logits", tmp_path / "out.npz"],
            ["predict", path, odd, data / "cat" / os.fsdecode(b"\xff.jpg")],
            ["evaluate", path, f"folder:{data}"],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "squeezenet_jax", *argv],
                cwd=REPOSITORY,
                env=os.environ | {"PYTHONIOENCODING": encoding},
                capture_output=True,
                text=True,
            )
            assert "Traceback" not in done.stderr and done.returncode in (0, 1), done.stderr
            text = done.stdout + done.stderr
            assert ("caf\\xe9" in done.stdout) == (argv[0] == "predict")
            assert "\\xff.jpg" in text or len(argv) == 5


def test_a_home_folder_is_understood_in_every_path(path, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(folder, tmp_path / "val")
    (tmp_path / "labels.txt").write_text("\n".join(CLASSES))
    image = next((tmp_path / "val").glob("cat/*.png")).relative_to(tmp_path)
    options = ["--labels=~/labels.txt", "--logits=~/out.npz"]
    assert run("predict", "~/w.safetensors", f"~/{image}", *options) == 0
    assert (tmp_path / "out.npz").exists()
    assert run("evaluate", "~/w.safetensors", "folder:~/val") == 0
    (tmp_path / "source").mkdir()
    (tmp_path / "val").rename(tmp_path / "source/val")
    assert run("prepare", "~/source", "--out=~/prepared") == 0 and (tmp_path / "prepared/source/1.0.0").is_dir()
    assert run("convert", "~/w.safetensors", "~/copy.safetensors") == 0 and (tmp_path / "copy.safetensors").exists()


def test_wrong_commands_end_in_one_line(path, folder, tmp_path, capsys):
    image = next(folder.glob("cat/*.png"))
    (tmp_path / "empty").mkdir()
    for argv, message in (
        (["convert", path], "the following arguments are required: DST"),
        (["convert", path, tmp_path / "b.pth"], "written as .safetensors"),
        (["convert", path, tmp_path / "b.safetensors", "--layout", "torchvision"], "no bypass"),
        (["convert", tmp_path / "none.net", tmp_path / "b.safetensors"], "no such file"),
        (["convert", path, tmp_path / "b.safetensors", "--labels", tmp_path / "none"], "--labels"),
        (["predict", path, tmp_path / "none.jpg"], "cannot be read as an image"),
        (["predict", path, image, "--top", "0"], "--top"),
        (["predict", path, image, "--logits", tmp_path / "no" / "out.npz"], "there is no folder"),
        (["predict", path, image, "--bypass", "none"], "records its own architecture"),
        (["predict", image, image], "no known format"),
        (["evaluate", path, "digits"], "the network has 6 classes"),
        (["evaluate", path], "DATA: is missing; only a run's directory"),
        (["evaluate", path, "digts"], 'did you mean "digits"'),
        (["evaluate", path, "folder"], "must be folder:DIR"),
        (["evaluate", path, f"folder:{folder}", "--split", "test"], "--split: is for datasets"),
        (["evaluate", path, f"folder:{tmp_path}/none"], "cannot be read"),
        (["evaluate", path, f"folder:{tmp_path / 'empty'}"], "0 class folders; the network has 6"),
        (["evaluate", path, f"folder:{folder}", "--batch-size", "0"], "--batch-size"),
    ):
        assert message in fails(capsys, *argv)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("JAX_PLATFORMS", "cuda", "JAX_PLATFORMS: 'cuda' cannot be had here"),
        ("JAX_PLATFORM_NAME", "gpu", "JAX_PLATFORM_NAME: 'gpu' cannot be had here (Unknown backend: 'gpu'"),
        ("JAX_NUM_CPU_DEVICES", "two", 'environment: Invalid value "two" for JAX flag jax_num_cpu_devices'),
        ("JAX_ENABLE_X64", "maybe", "environment: invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'"),
    ],
)
def test_devices_that_are_not_there_are_one_line(path, folder, variable, value, message):
    environment = {name: x for name, x in os.environ.items() if not name.startswith("JAX_")} | {variable: value}
    command = [sys.executable, "-m", "squeezenet_jax", "predict", str(path), str(next(folder.glob("cat/*.png")))]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert message in result.stderr


def test_ctrl_c_ends_a_command_in_one_line(network, folder, tmp_path):
    nameless = tmp_path / "nameless.safetensors"
    weights.save(nameless, dataclasses.replace(network, labels=()))
    for number in range(300):
        shutil.copytree(folder / "cat", tmp_path / "many" / "cat" / str(number))
    for name in CLASSES[1:]:
        (tmp_path / "many" / name).mkdir()
    command = [sys.executable, "-m", "squeezenet_jax", "evaluate", str(nameless), f"folder:{tmp_path / 'many'}"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline().startswith("note: ")  # from now on it compiles and reads
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
