"""What a workdir's runs read is part of what they are; where it lies and how that is spelled is not."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from test_sweep import contents, experiment, fake_training
from test_sweep import planned as digits_plan
from tiny_settings import TINY

from experiments import base
from squeezenet_jax import weights
from squeezenet_jax.data import fingerprint, folder
from squeezenet_jax.experiment import planning, sweep
from squeezenet_jax.experiment.progress import Progress
from squeezenet_jax.settings import DataSettings
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights import Preprocessing, Weights
from squeezenet_jax.weights.bundle import parameter_shapes, unflatten

__all__ = ["fake_training"]  # a fixture


def add(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)).save(path)


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "pictures"
    for number, place in enumerate(f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in range(20)):
        add(root / place, number)
    return root


def plan(directory, recorded=None, **changes):
    folder.scan.cache_clear()
    folder.linked.cache_clear()
    sweep._inputs.cache_clear()
    config = planning.flatten(base.get_config("folder").to_dict()) | TINY | {"data.channels": 3}
    config |= {"data.name": "folder", "data.dir": str(directory), "data.mean": (0.5,), "data.std": (0.5,)}
    config |= {"data.train_split": "train", "data.eval_split": "test", "data.crop": "whole", "model.stem": "small"}
    config |= {"train.batch_size": 8, "model.geometry": "same"}
    config |= {name.replace("__", "."): value for name, value in changes.items()}
    return planning.plan(experiment(seeds=1), "folder", planning.unflatten(config), (), recorded)


def run(planned, workdir):
    return sweep.run(planned, workdir, Progress(Console(file=io.StringIO())), lambda: False)


CHANGES = {
    "added": lambda root: add(root / "train/a/new.png", 99),
    "removed": lambda root: (root / "train/b/3.png").unlink(),
    "moved": lambda root: (root / "test/a/3.png").rename(root / "test/b/33.png"),
    "replaced": lambda root: (root / "test/a/3.png").write_bytes(b"x" * 10),
    "a class renamed": lambda root: [(root / s / "b").rename(root / s / "c") for s in ("train", "test")],
}


@pytest.mark.parametrize("change", CHANGES)
def test_images_that_changed_between_two_runs_of_a_sweep_are_refused(fake_training, pictures, tmp_path, change):
    workdir = tmp_path / "runs"
    run(plan(pictures).only("bypass=none"), workdir)
    CHANGES[change](pictures)
    before = contents(workdir)
    for part in (
        plan(pictures),
        plan(pictures).only("bypass=simple"),
        plan(pictures).only("bypass=simple").only("seed=0"),
    ):
        with pytest.raises(UserError, match=r"was begun with other inputs: data\.(train|test) was .* now it is"):
            run(part, workdir)
    assert contents(workdir) == before
    sweep.compare(plan(pictures), workdir)


def test_another_spelling_of_the_same_data_is_no_difference(fake_training, pictures, tmp_path, monkeypatch):
    workdir = tmp_path / "runs"
    run(plan(pictures).only("bypass=none"), workdir)
    (tmp_path / "link").symlink_to(pictures)
    shutil.copytree(pictures, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    for spelling in (f"{pictures}/", "pictures", "./pictures/../pictures", tmp_path / "link", tmp_path / "copy"):
        run(plan(spelling), workdir)
    assert len(fake_training) == 2
    shutil.copytree(workdir, tmp_path / "elsewhere")
    assert run(plan("copy"), tmp_path / "elsewhere") == ["done", "done"]


def test_a_known_dataset_that_is_not_here_is_no_other_one(tmp_path):
    """A finished workdir is opened where its data were never prepared, or no longer are."""
    data = DataSettings(name="cifar10", dir=str(tmp_path), num_classes=10, eval_split="test")
    with pytest.raises(UserError, match=r"data\.dir: .* has no cifar10; prepare it there: "):
        fingerprint.fingerprint(data)
    assert sweep._inputs_if_here(data, "") is None  # nothing is compared


def test_the_same_images_prepared_twice_are_not_said_to_be_others():
    a, b, c = "50 images in 2 classes, aa", "50 images in 2 classes, bb", "51 images in 2 classes, aa"
    assert not fingerprint.surely_differ("cifar10", a, b) and fingerprint.surely_differ("cifar10", a, c)
    assert fingerprint.surely_differ("folder", a, b) and not fingerprint.surely_differ("folder", a, a)


def test_a_report_needs_no_data(fake_training, pictures, tmp_path):
    workdir = tmp_path / "runs"
    run(plan(pictures), workdir)
    shutil.rmtree(pictures)
    recorded = planning.flatten(sweep.read_json(workdir / sweep.MANIFEST)["config"])
    planned = plan(pictures, recorded, data__num_classes=0, data__eval_split="")
    sweep.claim(planned, workdir)
    assert [row.n for row in sweep.compare(planned, workdir).rows] == [1, 1]


def test_splits_that_share_images_are_refused_unless_allowed(pictures):
    with pytest.raises(UserError, match=r"data\.eval_split: train shares 40 images with data\.train_split"):
        plan(pictures, data__eval_split="train")
    with pytest.raises(UserError, match=r"shares 8 images"):
        plan(pictures, data__eval_split="train[80%:]")
    overlaps = [("train[:80%]", "train[-22%:]"), ("train[:-10]", "train[29:]"), ("test[5:9]", "test[8:20]")]
    for train, held_out in overlaps:
        with pytest.raises(UserError, match="shares 1 image with"):
            plan(pictures, data__train_split=train, data__eval_split=held_out)
    plan(pictures, data__train_split="train[:80%]", data__eval_split="train[80%:]")
    plan(pictures, data__train_split="train[:-8]", data__eval_split="train[-20%:]")
    plan(pictures, data__eval_split="train", data__allow_overlap=True)


def test_splits_that_are_the_same_files_through_links_are_refused_unless_allowed(pictures):
    """A validation folder that was made by linking the training images to try something out."""
    shutil.rmtree(pictures / "test" / "b")
    (pictures / "test" / "b").symlink_to(pictures / "train" / "b")
    with pytest.raises(UserError, match=r"eval_split: test shares 20 images with data\.train_split, which is train"):
        plan(pictures)
    plan(pictures, data__allow_overlap=True)
    (pictures / "test" / "b").unlink()
    shutil.copytree(pictures / "train" / "b", pictures / "test" / "b")  # as far as anybody can tell without reading
    plan(pictures)


def save_weights(path, seed):
    settings = digits_plan().runs[0].settings
    arch, shapes = settings.model.architecture(), {"channels": 1, "num_classes": 10}
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(size=s).astype(np.float32) for name, s in parameter_shapes(arch, **shapes).items()}
    preprocessing = Preprocessing("training", 8, "squash", 8, "L", 1 / 255, (0.5,), (0.5,))
    weights.save(path, Weights(arch, unflatten(params), 10, 1, preprocessing))


def test_other_weights_at_the_same_path_are_refused_and_the_same_at_another_are_not(fake_training, tmp_path):
    first, workdir = tmp_path / "w.safetensors", tmp_path / "runs"
    save_weights(first, 0)
    run(digits_plan(model__init_from=str(first)).only("bypass=none"), workdir)
    shutil.copy(first, tmp_path / "copy.safetensors")
    run(digits_plan(model__init_from=str(tmp_path / "copy.safetensors")).only("bypass=none"), workdir)
    save_weights(first, 1)
    sweep._inputs.cache_clear()
    again = digits_plan(model__init_from=str(first))
    for part in (again, again.only("bypass=simple")):
        with pytest.raises(UserError, match=r"was begun with other inputs: weights was \w+, now it is \w+"):
            run(part, workdir)
    assert len(fake_training) == 2  # seeds
