"""Folders for a model hub: what their cards say, and that they load again by their path and by a name on a hub."""

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from loopback import COMMIT, ModelHub, serve
from scipy import stats

import squeezenet_jax
from squeezenet_jax.__main__ import main
from squeezenet_jax.export import hub, model_card
from squeezenet_jax.runs.directory import write_json
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import flatten

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "tests" / "old_files" / "2026_11_before_the_library" / "workdir"
DIGITS = [f"digit {k}" for k in range(10)]


@pytest.fixture
def workdir(tmp_path):
    """Three finished runs that differ in their seed, and one with another bypass."""
    for seed, top1 in ((0, 0.2), (1, 0.3), (2, 0.4)):
        run = tmp_path / f"bypass=none,seed={seed}"
        shutil.copytree(RUNS / "bypass=none,seed=0", run)
        described = json.loads((run / "run.json").read_text())
        described["settings"]["seed"] = seed
        described["labels"] = {"eval": {"images": 50, "majority": 0.12}}
        write_json(run / "run.json", described)
        metrics = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(
            metrics.replace('"top1": 0.2, "top5": 0.56', f'"top1": {top1}, "top5": 0.56')
        )
    shutil.copytree(RUNS / "bypass=complex,seed=0", tmp_path / "bypass=complex,seed=0")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    return tmp_path


def export(source, out, *options):
    assert main(["export", str(source), str(out), "--format", "hub", *options]) == 0
    return (out / "README.md").read_text()


def same(a, b):
    a, b = flatten(a.params), flatten(b.params)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_a_runs_folder_says_what_the_run_says_and_loads_by_its_path(workdir, capsys):
    (workdir / "labels.txt").write_text("\n".join(DIGITS))
    run, out = workdir / "bypass=none,seed=1", workdir / "out"
    out.mkdir()  # an empty folder is as good as none
    card = export(run, out, "--labels", str(workdir / "labels.txt"))
    assert "README.md, config.json, model.safetensors" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = squeezenet_jax.load(out)
    assert same(again, squeezenet_jax.load(run)) and again.labels == tuple(DIGITS)
    interval = stats.binomtest(15, 50).proportion_ci(0.95, method="wilson")  # SciPy's, of 0.3 * 50
    for part in (
        "# SqueezeNet v1.0, trained on digits",
        "| trained on | `digits`, split `train[:96]`: 96 images |",
        "| evaluated on | `digits`, split `test[:50]`: 50 images |",
        f"**30.00 %**: 15 of 50; 95 % interval {100 * interval.low:.2f} to {100 * interval.high:.2f} % |",
        "| top-5 accuracy | 56.00 % |",
        "always answering the commonest class: 12.00 % |",
        "Resize it to 8 × 8 px in any case (bilinear",
        "with mean 0.5 and std 0.5",
        "10, in this order: `digit 0`, `digit 1`",
        "From scratch: 2 epochs in batches of 16 images, with adamw",
        "weights of step 12, the last",
        "| `model.conv10_relu` | `False` |",
        "trained with 3 seeds (0, 1, 2): top-1 30.00 ± 10.00 %",
        "- The licence.",
    ):
        assert part in card, part
    for part in ("did not end", "stalled", "assumption", "tensorflow_datasets", "workdir"):
        assert part not in card, part
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"]["9"] == "digit 9" and config["training"]["seed"] == 1


def test_the_card_is_one_that_the_hubs_client_reads(workdir):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="pip install -r requirements-hub.txt")
    export(workdir / "bypass=none,seed=2", workdir / "out")
    data = huggingface_hub.ModelCard.load(workdir / "out" / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("unknown", "squeezenet_jax", "image-classification")
    assert "arxiv:1602.07360" in data.tags and data.metrics == ["accuracy"] and data.datasets is None
    found = [(x.dataset_name, x.dataset_split, x.metric_name, x.metric_value) for x in data.eval_results]
    top1, top5 = ("digits", "test[:50]", "Top-1 accuracy", 0.4), ("digits", "test[:50]", "Top-5 accuracy", 0.56)
    assert found == [top1, top5] and data.model_name == "SqueezeNet v1.0, trained on digits"


def test_the_folder_loads_by_its_name_on_a_hub(workdir):
    """As a user would: HF_ENDPOINT, a new process, the command line."""
    pytest.importorskip("huggingface_hub", reason="pip install -r requirements-hub.txt")
    (workdir / "labels.txt").write_text("\n".join(DIGITS))
    out, copy = workdir / "out", workdir / "copy.safetensors"
    export(workdir / "bypass=none,seed=0", out, "--labels", str(workdir / "labels.txt"))
    command = [sys.executable, "-m", "squeezenet_jax", "convert", "hf:owner/digits", str(copy)]
    with serve(ModelHub({"owner/digits": {path.name: path.read_bytes() for path in out.iterdir()}})) as server:
        env = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(workdir / "hf")}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    again = squeezenet_jax.load(copy)
    assert same(again, squeezenet_jax.load(out)) and again.labels == tuple(DIGITS)
    assert again.provenance["name"] == f"hf:owner/digits@{COMMIT}"


def test_weights_without_a_run_have_a_card_that_says_what_is_not_known(make_weights, workdir):
    source = dataclasses.replace(make_weights(36), provenance={"assumed preprocessing": "test", "source": "a|b`.pth"})
    squeezenet_jax.save(workdir / "net.safetensors", source)
    card = export(workdir / "net.safetensors", workdir / "out")
    for part in (
        "# SqueezeNet v1.1\n",
        "**Its accuracy is not known**",
        "**This is an assumption**",
        "source `a/b'.pth`",
    ):
        assert part in card, part
    assert "model-index" not in card and "## Training" not in card
    assert squeezenet_jax.load(workdir / "out").labels == source.labels
    with pytest.raises(UserError, match="not where these weights were read from"):
        squeezenet_jax.export_hub(workdir / "other", source, workdir / "bypass=none,seed=0")


def test_a_run_that_did_not_end_or_learn_says_so(workdir):
    card = export(RUNS / "bypass=none,seed=1", workdir / "running")
    assert "**The training did not end** (status `running`)" in card and ", the last" not in card
    assert "not known: these weights were not evaluated" in card and "model-index" not in card
    write_json(workdir / "bypass=none,seed=0" / "status.json", {"status": "stalled"})
    assert "**The training stalled**" in export(workdir / "bypass=none,seed=0", workdir / "stalled")


def test_seeds_that_diverged_are_said_to_have(workdir):
    for seed in (1, 2):
        write_json(workdir / f"bypass=none,seed={seed}" / "status.json", {"status": "diverged"})
    card = export(workdir / "bypass=none,seed=0", workdir / "one")
    assert "One run with these settings ended." in card and "is not known" not in card.split("One run with")[1][:200]
    assert "**2 more diverged** (seed 1, 2) and have no accuracy" in card
    write_json(workdir / "bypass=none,seed=1" / "status.json", {"status": "done"})
    card = export(workdir / "bypass=none,seed=0", workdir / "two")
    assert "trained with 2 seeds (0, 1)" in card and "**1 more diverged** (seed 2)" in card
    assert "What to expect" not in card


def test_weights_behind_which_checkpoints_are_unreadable_are_not_called_the_last(workdir):
    run = workdir / "bypass=none,seed=0"
    (run / "checkpoints" / "13.safetensors").write_bytes(b"\0")
    assert "of step 12, because newer checkpoints are unreadable." in export(run, workdir / "out")


def test_what_was_computed_otherwise_is_said(workdir):
    run = workdir / "bypass=none,seed=0"
    described = json.loads((run / "run.json").read_text())
    described["settings"]["model"]["dtype"] = "bfloat16"
    write_json(run / "run.json", described)
    assert "The run computed in bfloat16" in export(run, workdir / "out")


def test_many_classes_are_listed_in_the_config_only(make_weights, workdir):
    names = tuple(f"name {k}" for k in range(100))
    source = make_weights(36)
    kernel, bias = (
        np.zeros((1, 1, source.params["conv10"]["kernel"].shape[2], 100), np.float32),
        np.zeros(100, np.float32),
    )
    params = {**source.params, "conv10": {"kernel": kernel, "bias": bias}}
    source = dataclasses.replace(source, params=params, num_classes=100, labels=names)
    squeezenet_jax.export_hub(workdir / "out", source)
    assert "100, from `name 0` to `name 99`; `config.json` lists them" in (workdir / "out" / "README.md").read_text()


def test_wilsons_interval_is_scipys():
    for correct, total in ((0, 7), (7, 7), (356, 364), (29_089, 50_000)):
        interval = stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose(model_card.wilson(correct, total), (interval.low, interval.high), atol=1e-6)


def test_what_is_there_is_not_overwritten_and_mistakes_are_one_line(workdir, capsys):
    run, taken = workdir / "bypass=none,seed=0", workdir / "taken"
    taken.mkdir()
    (taken / "README.md").write_text("edited")
    for out, options, message in (
        (taken, [], "is there already; with --format hub it must be a new or an empty folder"),
        (workdir / "no" / "out", [], "there is no folder"),
        (workdir / "out", ["--opset", "17"], "--opset: is not for --format hub"),
        (workdir / "out", ["--image-size", "64"], "--image-size: is not for --format hub"),
    ):
        assert main(["export", str(run), str(out), "--format", "hub", *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert (taken / "README.md").read_text() == "edited" and not (workdir / "out").exists()


def test_a_full_disk_or_a_wrong_copy_leaves_nothing(workdir, monkeypatch):
    before = sorted(workdir.iterdir())
    source = squeezenet_jax.load(workdir / "bypass=none,seed=0")

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(UserError, match=re.escape(f"OUT {workdir / 'out'}: cannot be")):
        patch.setattr(os, "fsync", full)
        squeezenet_jax.export_hub(workdir / "out", source)
    other = dataclasses.replace(source, labels=tuple(DIGITS))
    with monkeypatch.context() as patch, pytest.raises(UserError, match="reads back as something else"):
        patch.setattr(hub.weights, "load", lambda path: other)
        squeezenet_jax.export_hub(workdir / "out", source)
    assert sorted(workdir.iterdir()) == before
