"""Images on disk as a source: what is decoded when, odd files, and that a folder is the data set prepared from it."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_settings import make_settings

from squeezenet_jax.data import catalog, folder, loader, sources
from squeezenet_jax.data.batches import EvalBatches, TrainBatches, in_parts
from squeezenet_jax.data.loader import Loader
from squeezenet_jax.data.prepare.writer import prepare
from squeezenet_jax.errors import UserError

LARGE = 150_000_000  # bytes; a fraction of a second in a pipe
CLASSES = ("ant", "bee", "cat")
CROPS = {"data__crop": "random_resized", "data__eval_resize": 12}


class Silent:
    def begin(self, what, total, unit): ...

    def advance(self, count): ...

    def say(self, text): ...


def photograph(seed, size=(40, 30), mode="RGB", form="JPEG"):
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode).save(file, form)
    return file.getvalue()


@pytest.fixture
def pictures(tmp_path):
    """A folder with 30 photographs to train on and 9 held out."""
    for split, count in (("train", 10), ("val", 3)):
        for label, name in enumerate(CLASSES):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for number in range(count):
                path = tmp_path / "pictures" / split / name / f"{number}.jpg"
                path.write_bytes(photograph([label, number]))
    clear()
    return tmp_path / "pictures"


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


def test_what_a_folder_leaves_open_is_read_from_it(pictures):
    data = settings_for(pictures).data
    assert (data.num_classes, data.eval_split) == (3, "validation")
    assert len(sources.load(data, "train_split")) == 30
    assert len(sources.load(data, "eval_split")) == 9
    labels = np.concatenate([batch["label"][batch["mask"] == 1] for batch in batches(settings_for(pictures))[-3:]])
    np.testing.assert_array_equal(np.bincount(labels), [3, 3, 3])


@pytest.mark.parametrize("changes", [{}, CROPS], ids=["whole", "random_resized"])
def test_a_folder_and_the_data_set_made_from_it_give_the_same_batches(pictures, tmp_path, changes):
    prepare(pictures, tmp_path / "sets", Silent(), name="insects")
    prepared = settings_for(tmp_path / "sets", "insects", **changes)
    from_folder = batches(settings_for(pictures, **changes))
    assert_same_batches(from_folder, batches(prepared))
    assert_same_batches(from_folder, batches(prepared, workers=1))  # another process opens the records for itself


def test_images_in_memory_are_those_decoded_when_asked_for(pictures, monkeypatch):
    settings = settings_for(pictures)
    in_memory = batches(settings)
    assert isinstance(sources.load(settings.data, "train_split"), sources.InMemory)
    clear()
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
    assert isinstance(sources.load(settings.data, "train_split"), sources.Encoded)
    assert_same_batches(in_memory, batches(settings))


@pytest.mark.parametrize("workers", [0, 1, 2], ids=["threads", "a process", "processes"])
def test_batches_do_not_depend_on_who_makes_them(pictures, workers):
    settings = settings_for(pictures, **CROPS)
    assert_same_batches(batches(settings), batches(settings, workers))


@pytest.mark.parametrize("workers", [0, 2], ids=["threads", "processes"])
def test_batches_do_not_depend_on_how_many_share_one(pictures, workers, monkeypatch):
    spoil(pictures)
    settings = settings_for(pictures, **CROPS)
    train = TrainBatches(sources.load(settings.data, "train_split"), 13, seed=3, rows=(2, 13))
    monkeypatch.setattr("squeezenet_jax.data.batches.PART_ROWS", 3)
    makers = in_parts(train, 99)
    notices, again = [], []
    assert [maker.__self__.rows for maker in makers] == [(2, 5), (5, 9), (9, 13)]
    with Loader({"train": makers}, workers, notices.append) as loader:
        shared = list(loader.stream("train", range(2, 9)))
    with Loader({"train": [train.batch_at]}, None, again.append) as loader:
        assert_same_batches(shared, loader.stream("train", range(2, 9)))
    assert notices == again and len(notices) == 3


def test_small_batches_are_not_shared(pictures):
    train = TrainBatches(sources.load(settings_for(pictures).data, "train_split"), 127, seed=3)
    assert len(in_parts(train, 8)) == 1
    assert len(in_parts(train, 1)) == 1


def test_crops_differ_by_epoch_example_and_seed(pictures):
    source = sources.load(settings_for(pictures, **CROPS).data, "train_split")
    index = np.zeros(2, int)
    first = source.read(index, np.array([[0, 4, 0, 0], [0, 4, 1, 0]]))["image"]
    again = source.read(index, np.array([[0, 4, 0, 0], [1, 4, 0, 0]]))["image"]
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(again[0], again[1])


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


@pytest.mark.parametrize("changes", [{}, CROPS], ids=["whole", "random_resized"])
def test_unreadable_images_count_nothing_and_are_named_once(pictures, changes):
    bad = spoil(pictures)
    settings = settings_for(pictures, **changes)
    notices = []
    with Loader(makers(settings), 0, notices.append) as loader:
        epochs = list(loader.stream("train", range(18)))  # 36 images in batches of 7: three and a half epochs
        assert {"/".join(name.partition(":")[0].split("/")[-2:]) for name in loader.unreadable} == bad
    assert len(notices) == 3
    index = np.concatenate([batch["index"][batch["mask"] == 0] for batch in epochs])
    assert len(set(index)) == 3
    for batch in epochs:
        assert not batch["image"][batch["mask"] == 0].any()
        assert batch["image"][batch["mask"] == 1].reshape(int(batch["mask"].sum()), -1).any(1).all()


def test_an_image_that_vanishes_in_mid_epoch_is_left_out(pictures):
    settings = settings_for(pictures, **CROPS)
    made = makers(settings)
    (pictures / "train/ant/3.jpg").unlink()
    notices = []
    with Loader(made, None, notices.append) as loader:
        masks = np.concatenate([batch["mask"] for batch in loader.stream("train", range(30))])
    assert np.sum(masks == 0) == 7  # 210 examples are seven epochs
    assert len(notices) == 1 and "ant/3.jpg" in notices[0]


def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(pictures):
    settings = settings_for(pictures, **CROPS)
    expected = batches(settings)[:7]
    notices, got = [], []
    with Loader(makers(settings), 2, notices.append) as loader:
        for number, batch in enumerate(loader.stream("train", range(2, 9))):
            got.append(batch)
            if number == 2:
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
                time.sleep(0.2)
    assert_same_batches(got, expected)
    assert notices == ["a worker process for data died; starting another one"]


def test_workers_that_keep_dying_end_the_run(pictures):
    with Loader({"train": [os._exit]}, 1, lambda text: None) as loader, pytest.raises(RuntimeError, match="3 times"):
        next(loader.stream("train", [1]))


def run_script(pictures, lines):
    """A process that has `loader`, with two workers, and `settings`; and runs these lines."""
    script = f"""
import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
import multiprocessing, os, signal, time, test_sources
settings = test_sources.settings_for({str(pictures)!r}, **test_sources.CROPS)
if __name__ == "__main__":
    loader = test_sources.Loader(test_sources.makers(settings), 2, print)
{textwrap.indent(textwrap.dedent(lines), "    ")}
"""
    path = pictures.parent / "script.py"
    path.write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120, env=environment)


def test_workers_end_with_the_process_that_started_them(pictures):
    done = run_script(
        pictures,
        """
        next(loader.stream("train", [0, 1, 2]))
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    workers = [int(pid) for pid in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and len(workers) == 2, done.stderr
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("which", [0, 1])
def test_one_of_two_idle_workers_is_killed(pictures, which):
    """With a pipe for both, one of them holds its lock and the other one would wait for it for ever."""
    done = run_script(
        pictures,
        f"""
        with loader:
            batches = loader.stream("train", range(8))
            next(batches)
            time.sleep(1)
            os.kill(sorted(child.pid for child in multiprocessing.active_children())[{which}], signal.SIGKILL)
            print(len(list(batches)))
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["a worker process for data died; starting another one", "7"]


def large_batch(position):
    return {"image": np.full(LARGE, position, np.uint8), "unreadable": []}


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.15, 0.2, 0.3])
def test_a_worker_is_killed_while_it_hands_over_a_batch(delay):
    notices = []
    with Loader({"train": [large_batch]}, 1, notices.append) as loader:
        batches = loader.stream("train", range(4))
        first = next(batches)["image"][0]
        time.sleep(delay)  # handing over the second one takes about 0.3 s
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        assert [first, *(batch["image"][0] for batch in batches)] == [0, 1, 2, 3]
    assert notices == ["a worker process for data died; starting another one"]


def test_what_a_maker_raises_reaches_the_one_who_asked(pictures):
    with (
        Loader({"train": [int.bit_length]}, 1, print) as loader,
        pytest.raises(TypeError, match="bit_length") as raised,
    ):
        next(loader.stream("train", ["position"]))
    assert "Traceback" in raised.value.__notes__[0]


def test_the_loader_says_how_long_it_waited():
    def slow(position):
        time.sleep(0.05)
        return {"position": position}

    with Loader({"train": [slow]}, None, print) as loader:
        assert [batch["position"] for batch in loader.stream("train", [3, 1, 2])] == [3, 1, 2]
        assert 0.15 <= loader.waited < 2
    with Loader({"train": [slow]}, 0, print) as loader:
        for _ in loader.stream("train", range(5)):
            time.sleep(0.12)  # meanwhile the next ones are made
        assert loader.waited < 0.15


@pytest.mark.parametrize(
    ("directory", "message"), [("train", "data.dir: .*has no split folders"), ("nowhere", "data.dir: .*is no folder")]
)
def test_what_is_no_folder_of_images_is_refused(pictures, directory, message):
    with pytest.raises(UserError, match=message):
        catalog.info("folder", str(pictures / directory))


def test_a_split_that_the_folder_lacks_is_refused(pictures):
    with pytest.raises(UserError, match=r'data\.eval_split: unknown value "test"; allowed: train, validation'):
        catalog.check(settings_for(pictures, data__eval_split="test").data)


def test_threads_are_as_many_as_cores():
    assert loader.parallelism(0) == len(os.sched_getaffinity(0))
