"""What the report says of how the runs were run."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fixed_runs import BASE, SIMPLE, a_run, every_text, runs_of

from squeezenet_jax.report import Run, compare, conditions

SETTINGS = {
    "data.train_split": "train[:1200]", "data.eval_split": "test", "data.image_size": 16, "data.num_classes": 10,
    "train.batch_size": 32, "train.epochs": 4.0, "optimizer.peak_lr": 0.002, "optimizer.name": "adamw",
    "optimizer.schedule": "cosine", "data.flip": True, "data.mean": (0.5, 0.25),
}  # fmt: skip
STARTED = {
    "command": ["launch.py", "--config", "experiments/bypass.py", "--config.data.mean=(0.50,0.25)", "--workdir", "a",
                "--noconfig.data.flip", "-config.train.epochs", "4", "--config.data.flip=true"],
    "git": "9236f67414d70ed57fbc09efcd1e584004cb0376+changes", "devices": ["cpu"], "processes": 1,
    "versions": {"python": "3.11.7", "jax": "0.10.2", "simplejpeg": None}, "earlier_starts": [],
}  # fmt: skip


def with_conditions(run: Run, started: Mapping[str, Any] = STARTED, **changed: Any) -> Run:
    settings = SETTINGS | {name.replace("__", "."): value for name, value in changed.items()}
    images = {"train": 1200, "eval": 364}
    return dataclasses.replace(run, settings=settings, started=dict(started), images=images)


def test_table_and_page_say_on_what_and_how_the_runs_were_run(tmp_path: Path) -> None:
    comparison = compare("bypass", "digits", BASE, [with_conditions(run) for run in runs_of(simple1="missing")])
    line = (
        "training images: 1,200 (train[:1200]); evaluation images: 364 (test); image size: 16 px; batch size: 32; "
        "learning rate: 0.002 (adamw, cosine); epochs: 4; set on the command line: data.mean=0.5,0.25 data.flip=True "
        "train.epochs=4"
    )
    texts = every_text(comparison, tmp_path)
    assert line in texts["console"] and line in texts["md"]
    assert f"each setting. T{line[1:]}." in texts["html"]
    for fact in ("<dt>batch size</dt><dd>32</dd>", "9236f67414+changes", "python 3.11.7, jax 0.10.2", "1 × cpu"):
        assert fact in texts["html"]


def test_what_is_swept_is_shown_with_its_values() -> None:
    few = [with_conditions(run, train__batch_size=16 * (1 + run.seed % 2)) for run in runs_of()]
    many = [with_conditions(a_run(BASE, seed, 0.9), train__batch_size=seed) for seed in range(7)]
    assert "batch size: 16 or 32;" in conditions.summary(compare("bypass", "digits", BASE, few))
    assert "batch size: 0 to 6 (7 values);" in conditions.summary(compare("bypass", "digits", BASE, many))


def test_runs_that_were_not_started_alike_are_named(tmp_path: Path) -> None:
    runs = [with_conditions(run) for run in runs_of()]
    assert not conditions.differences(compare("bypass", "digits", BASE, runs))
    newer = STARTED | {"versions": STARTED["versions"] | {"jax": "0.11.0", "simplejpeg": "1.9.0"}}
    elsewhere = STARTED | {"git": None, "devices": ["NVIDIA H100"] * 8, "processes": 2}
    resumed = STARTED | {"earlier_starts": [STARTED | {"git": "29ed00c" + 33 * "0"}]}
    for number, started in ((1, newer), (4, elsewhere), (6, resumed)):
        runs[number] = with_conditions(runs[number], started)
    comparison = compare("bypass", "digits", BASE, runs)
    sentences = [
        "The runs differ in code revision: unknown (bypass=simple,seed=0); 29ed00c000 (bypass=simple,seed=2); the "
        "others 9236f67414+changes.",
        "The runs differ in devices: 8 × NVIDIA H100 in 2 processes (bypass=simple,seed=0); the others 1 × cpu.",
        "The runs differ in packages: jax 0.11.0 and simplejpeg 1.9.0 (bypass=none,seed=1); the others jax 0.10.2 and "
        "simplejpeg (not installed).",
    ]
    assert conditions.differences(comparison) == sentences
    texts = every_text(comparison, tmp_path)
    for sentence in sentences:
        assert all(sentence in texts[name] for name in ("console", "md"))
        assert sentence in texts["html"]


def test_runs_that_were_not_evaluated_on_as_many_images_are_named() -> None:
    """Files that one machine could not read: the accuracies are of other images."""
    runs = [dataclasses.replace(with_conditions(run), images={"train": 1200, "eval": 1000}) for run in runs_of()]
    assert runs[5].final
    runs[5] = dataclasses.replace(runs[5], final={**runs[5].final, "count": 998})
    assert conditions.differences(compare("bypass", "digits", BASE, runs)) == [
        "The runs differ in images that could not be evaluated: 2 (bypass=simple,seed=1); the others 0."
    ]


def test_what_the_commonest_class_would_score_is_said_and_who_does_not_exceed_it_is_noted(tmp_path: Path) -> None:
    """TOP1 of "simple" is 0.972, 0.964, 0.975, 0.966."""
    runs = [dataclasses.replace(run, majority=0.966) for run in runs_of(simple0="diverged")]
    comparison = compare("bypass", "digits", BASE, runs)
    texts = every_text(comparison, tmp_path)
    for name in ("console", "md", "html"):
        assert "ajority class: 96.60 %" in texts[name]
        assert "always answering the commonest class would score as much" in texts[name]
    notes = {row.name: row.notes for row in comparison.rows}
    assert notes == {
        BASE: "3 not above the majority class",
        SIMPLE: "1 diverged, 2 not above the majority class",
    }


def test_without_the_distribution_of_labels_nothing_is_said_of_it(tmp_path: Path) -> None:
    assert all(
        "majority" not in text for text in every_text(compare("bypass", "digits", BASE, runs_of()), tmp_path).values()
    )


def test_of_the_runs_that_share_something_a_few_are_named() -> None:
    runs = [
        with_conditions(a_run(BASE, seed, 0.9), STARTED | {"devices": ["gpu" if seed < 5 else "cpu"]})
        for seed in range(11)
    ]
    (sentence,) = conditions.differences(compare("bypass", "digits", BASE, runs))
    names = "bypass=none,seed=0 and bypass=none,seed=1 and bypass=none,seed=2 and 2 more"
    assert sentence == f"The runs differ in devices: 1 × gpu ({names}); the others 1 × cpu."


def test_what_varies_between_the_seeds_of_a_row_is_said(tmp_path: Path) -> None:
    def sentence(**more: object) -> str:
        flat = {name.replace("__", "."): value for name, value in more.items()}
        runs = [dataclasses.replace(run, settings={"seed": run.seed, "model.dropout": 0.5} | flat) for run in runs_of()]
        return conditions.varied(compare("bypass", "digits", BASE, runs))

    same = "Training and evaluation images are the same."
    assert (
        sentence() == f"Between the seeds of a row vary the initialisation, the order of the images and dropout. {same}"
    )
    assert "the order of the images, crops and flips and dropout" in sentence(data__flip=True)
    assert "layers that the given weights lack" in sentence(model__init_from="weights", model__start="init_from")
    assert "vary the initialisation" in sentence(model__init_from="weights", model__start="scratch")
    splits = [
        dataclasses.replace(run, settings={"data.dir": f"/{run.seed}", "data.train_split": f"train[{run.seed}:]"})
        for run in runs_of()
    ]
    text = conditions.varied(compare("bypass", "digits", BASE, splits))
    assert text == "Between the seeds of a row vary the initialisation, the order of the images and data.train_split."
    assert text in every_text(compare("bypass", "digits", BASE, splits), tmp_path)["md"]
    assert conditions.varied(compare("bypass", "digits", BASE, runs_of())) == ""
