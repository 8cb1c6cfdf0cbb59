"""A folder of small photographs, the settings that read it, and its batches."""

import io

import numpy as np
from PIL import Image
from tiny_settings import make_settings

from squeezenet_jax.data import folder, sources
from squeezenet_jax.data.batches import EvalBatches, TrainBatches
from squeezenet_jax.data.loader import Loader

CLASSES = ("ant", "bee", "cat")
CROPS = {"data__crop": "random_resized", "data__eval_resize": 12}


def photograph(seed, size=(40, 30), mode="RGB", form="JPEG"):
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode).save(file, form)
    return file.getvalue()


def write(directory):
    """30 photographs to train on and 9 held out."""
    for split, count in (("train", 10), ("val", 3)):
        for label, name in enumerate(CLASSES):
            (directory / split / name).mkdir(parents=True)
            for number in range(count):
                path = directory / split / name / f"{number}.jpg"
                path.write_bytes(photograph([label, number]))
    clear()
    return directory


def clear():
    sources._load.cache_clear()
    folder.scan.cache_clear()


def settings_for(directory, name="folder", **changes):
    changes = {
        "data__train_split": "train",
        "data__eval_split": "",
        "data__channels": 3,
        "data__image_size": 8,
    } | changes
    return make_settings(data__name=name, data__dir=str(directory), data__num_classes=0, **changes)


def makers(settings):
    train = TrainBatches(sources.load(settings.data, "train_split"), 7, seed=3)
    evaluation = EvalBatches(sources.load(settings.data, "eval_split"), 4)
    return {"train": [train.batch_at], "eval": [evaluation.batch_at]}


def batches(settings, workers=None, notices=None):
    with Loader(makers(settings), workers, (notices if notices is not None else []).append) as loader:
        return [*loader.stream("train", range(2, 9)), *loader.stream("eval", range(3))]


def assert_same_batches(first, second):
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def spoil(pictures):
    """Puts odd files among the photographs; returns the names of the unreadable ones."""
    whole = photograph(1)
    (pictures / "train/ant/empty.jpg").write_bytes(b"")
    (pictures / "train/bee/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (pictures / "train/bee/text.jpg").write_text("not an image")
    (pictures / "train/cat/cmyk.JPEG").write_bytes(photograph(2, mode="CMYK"))
    (pictures / "train/cat/png.JPEG").write_bytes(photograph(3, form="PNG"))
    (pictures / "train/cat/grey.jpg").write_bytes(photograph(4, mode="L"))
    clear()
    return {"ant/empty.jpg", "bee/cut.jpg", "bee/text.jpg"}
