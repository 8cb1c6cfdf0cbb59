"""The model card of a hub's folder: README.md, which begins with facts in YAML that the hub reads.

All of it comes from the weights and from what their run wrote. What neither says is said to be unknown.
"""

import dataclasses
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from squeezenet_jax import settings
from squeezenet_jax.data.archives import printable
from squeezenet_jax.network.architecture import VERSIONS, Architecture
from squeezenet_jax.network.trace import count
from squeezenet_jax.system import nested
from squeezenet_jax.weights.bundle import Weights
from squeezenet_jax.weights.formats.torchvision_layout import ASSUMED

PAPER = "1602.07360"
Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
MANY_CLASSES = 20  # more are listed in config.json only
TOP5_CLASSES = 6  # of fewer classes, the five best are all there are
ENDED = ("done", "stalled")
# The hub's names of the datasets that this project knows.
DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "imagenet2012": "ILSVRC/imagenet-1k",
    "imagenette": "frgfm/imagenette",
}


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run's directory says of the weights of one of its steps."""

    settings: settings.Settings
    started: Mapping[str, Any]  # its run.json
    status: str
    step: int
    evaluation: Mapping[str, Any] | None  # of this step: loss, top1, top5, count
    images: int | None  # that it was trained on
    is_last: bool  # of the steps of a run that ended
    top1_by_seed: Mapping[int, float]  # of all runs beside it, itself included, that ended and differ in the seed only
    diverged_seeds: Sequence[int]  # of others that diverged

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED


def text(weights: Weights, trained: Trained | None) -> str:
    """The whole README.md."""
    title = _title(weights, trained)
    parts = [f"---\n{_yaml(_front_matter(weights, trained, title))}---", f"# {title}", _summary(weights, trained)]
    parts += [USE, _input(weights), _classes(weights)]
    parts += [_training(trained), _accuracy(trained)] if trained else [_origin(weights)]
    return "\n\n".join([*parts, _unknown(trained)]) + "\n"


def wilson(correct: float, total: int) -> tuple[float, float]:
    """The 95 % score interval of a share (E. B. Wilson, 1927), as fractions."""
    p, n = correct / total, total
    centre, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return max((centre - half) / (1 + Z**2 / n), 0.0), min((centre + half) / (1 + Z**2 / n), 1.0)


def deciding(run: settings.Settings) -> dict[str, Any]:
    """The settings that decide the result, by dotted name; weights to start from without the path where they lay."""
    left_out = settings.idle(run) | settings.PLACES | {"model.init_from"}
    flat = nested.flatten(dataclasses.asdict(run), ".")
    found = {name: value for name, value in flat.items() if name not in left_out}
    return found | {"model.start": "init_from" if run.model.weights else "scratch"}


def _title(weights: Weights, trained: Trained | None) -> str:
    data = f", trained on {_plain(trained.settings.data.name)}" if trained else ""
    return f"SqueezeNet{_version(weights.arch)}{_bypass(weights.arch)}{data}"


def _version(arch: Architecture) -> str:
    pools = [len(group) for group in arch.groups]
    known = [name for name, table in VERSIONS.items() if [len(group) for group in table.groups] == pools]
    return f" {known[0]}" if known else ""


def _bypass(arch: Architecture) -> str:
    kinds = {spec.bypass for _, spec in arch.fires()} - {"none"}
    return (" with simple bypass" if kinds == {"identity"} else " with complex bypass") if kinds else ""


def _front_matter(weights: Weights, trained: Trained | None, title: str) -> dict[str, Any]:
    """The hub's own fields (huggingface/hub-docs, modelcard.md)."""
    facts: dict[str, Any] = {
        "license": "unknown",
        "library_name": "squeezenet_jax",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "squeezenet", "jax", "flax", f"arxiv:{PAPER}"],
    }
    if trained and trained.settings.data.name in DATASETS:
        facts["datasets"] = [DATASETS[trained.settings.data.name]]
    if trained and trained.evaluation:
        data, found = trained.settings.data, trained.evaluation
        metrics = [{"type": "accuracy", "name": "Top-1 accuracy", "value": found["top1"]}]
        if weights.num_classes >= TOP5_CLASSES:
            metrics.append({"type": "accuracy", "name": "Top-5 accuracy", "value": found["top5"]})
        result = {
            "task": {"type": "image-classification", "name": "Image classification"},
            "dataset": {"type": DATASETS.get(data.name, data.name), "name": data.name, "split": data.eval_split},
            "metrics": metrics,
        }
        facts |= {"metrics": ["accuracy"], "model-index": [{"name": title, "results": [result]}]}
    return facts


def _summary(weights: Weights, trained: Trained | None) -> str:
    params, macs = count(weights.trace())
    px = weights.preprocessing.crop
    what = f"""An image classifier for {weights.num_classes:,} classes: SqueezeNet
([arXiv {PAPER}](https://arxiv.org/abs/{PAPER})) with {params:,} parameters
({4 * params / 2**20:.2f} MiB as float32) and {macs / 1e6:,.1f} million multiply-adds for an image of {px} × {px} px."""
    if trained is None:
        return f"{what}\n\n**Its accuracy is not known**: the weights were exported without the run that made them."
    rows = "\n".join(f"| {key} | {value} |" for key, value in _results(weights, trained).items())
    notes = {
        f"**The training did not end** (status {_code(trained.status)}).": not trained.has_ended,
        "**The training stalled**: the network learned the classes' frequencies and nothing else.": (
            trained.status == "stalled"
        ),
    }
    return "\n\n".join([what, f"| | |\n|---|---|\n{rows}", *(note for note, holds in notes.items() if holds)])


def _results(weights: Weights, trained: Trained) -> dict[str, str]:
    data, found = trained.settings.data, trained.evaluation
    name = _code(data.name)
    images = "their number was not recorded" if trained.images is None else f"{trained.images:,} images"
    rows = {"trained on": f"{name}, split {_code(data.train_split)}: {images}"}
    if not found:
        return rows | {"top-1 accuracy": "not known: these weights were not evaluated"}
    n, top1 = int(found["count"]), found["top1"]
    low, high = (f"{100 * x:.2f}" for x in wilson(top1 * n, n))
    rows["evaluated on"] = f"{name}, split {_code(data.eval_split)}: {n:,} images"
    rows["top-1 accuracy"] = f"**{100 * top1:.2f} %**: {round(top1 * n):,} of {n:,}; 95 % interval {low} to {high} %"
    if weights.num_classes >= TOP5_CLASSES:
        rows["top-5 accuracy"] = f"{100 * found['top5']:.2f} %"
    majority = ((trained.started.get("labels") or {}).get("eval") or {}).get("majority")
    if majority is not None:
        rows["for comparison"] = f"always answering the commonest class: {100 * majority:.2f} %"
    return rows


USE = """## Use

With the Python package `squeezenet_jax`, and its extra `hub` to load by name:

```python
import squeezenet_jax

weights = squeezenet_jax.load("hf:OWNER/NAME")  # the name of this repository, or the path of a copy of it
for name, probability in squeezenet_jax.classify(weights, "image.png", top=3):
    print(f"{probability:6.1%}  {name}")
```

The same from the command line: `python -m squeezenet_jax predict hf:OWNER/NAME image.png`.

`model.safetensors` has the parameters as float32, under names such as `fire2/squeeze1x1/kernel`; kernels are in the
order height, width, input, output. All that it takes to run the network is in its metadata, and `config.json` repeats
that for other programs."""


def _input(weights: Weights) -> str:
    p = weights.preprocessing
    size = f"{p.resize} px on its short side" if p.mode == "short_side" else f"{p.resize} × {p.resize} px in any case"
    channels = {"RGB": "red, green, blue", "BGR": "blue, green, red", "L": "one, grey"}[p.channel_order]
    pixel = {1.0: "pixel", 1 / 255: "pixel / 255"}.get(p.scale, f"pixel × {p.scale:g}")
    steps = [f"Resize it to {size} (bilinear, with antialiasing)."]
    if p.crop < p.resize:
        steps.append(f"Take the {p.crop} × {p.crop} px at its centre.")
    steps.append(f"Channels: {channels}.")
    steps.append(f"Normalise: ({pixel} − mean) / std, with mean {_text(p.mean)} and std {_text(p.std)}.")
    listed = "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1))
    assumed = "**This is an assumption**: the file that was exported does not say it.\n\n"
    turned = "were" if p.exif_orientation else "were not"
    return f"""## Input

`squeezenet_jax` does this to an image by itself; other programs have to:

{listed}

{assumed if ASSUMED in weights.provenance else ""}In training and evaluation, photographs {turned} turned by their EXIF
orientation. `classify` and `predict` turn them first."""


def _classes(weights: Weights) -> str:
    names, k = weights.labels, weights.num_classes
    if not names:
        said = f"{k:,}, whose names are not known: the answers are `class 0` to `class {k - 1}`."
    elif k > MANY_CLASSES:
        said = f"{k:,}, from {_code(names[0])} to {_code(names[-1])}; `config.json` lists them as `id2label`."
    else:
        said = f"{k}, in this order: {', '.join(map(_code, names))}."
    return f"## Classes\n\n{said}"


def _training(trained: Trained) -> str:
    run, started = trained.settings, trained.started
    train, optimizer = run.train, run.optimizer
    origin = _provenance(started.get("init_from") or {})
    begun = f"other weights ({origin or 'not recorded'})" if run.model.weights else "scratch"
    chosen = ", the last, not one chosen by its accuracy" if trained.is_last else ""
    if trained.has_ended and not trained.is_last:
        chosen = ", because newer checkpoints are unreadable"
    versions = started.get("versions") or {}
    packages = ", ".join(f"{name} {_plain(versions[name])}" for name in ("jax", "flax", "optax") if versions.get(name))
    devices = ", ".join(dict.fromkeys(map(_plain, started.get("devices") or ())))
    rows = "\n".join(f"| `{name}` | {_code(_text(value))} |" for name, value in deciding(run).items())
    return f"""## Training

From {begun}: {train.epochs:g} epochs in batches of {train.batch_size} images, with {optimizer.name}, a learning rate of
{optimizer.peak_lr:g} ({optimizer.schedule}) and a weight decay of {optimizer.weight_decay:g}, seed {run.seed}.
These are the weights of step {trained.step:,}{chosen}.

Code: squeezenet_jax, revision {_code(started.get("git") or "not recorded")}. Packages: {packages or "not recorded"}.
Devices: {devices or "not recorded"}.

<details><summary>All settings</summary>

| setting | value |
|---|---|
{rows}

</details>"""


def _accuracy(trained: Trained) -> str:
    if not trained.evaluation:
        return "## Accuracy\n\nNot known: the run did not evaluate these weights."
    run, top1, n = trained.settings, trained.top1_by_seed, len(trained.top1_by_seed)
    seeds = "There is one run with these settings. How much another seed would change is not known."
    if n > 1:
        mean, std = 100 * statistics.fmean(top1.values()), 100 * statistics.stdev(top1.values())
        seeds = f"""These settings were trained with {n} seeds ({_text(sorted(top1))}): top-1 {mean:.2f} ± {std:.2f} %
(mean ± standard deviation)."""
        if not trained.diverged_seeds:
            seeds += " What to expect of another training is that mean, not the accuracy of this one."
    if n == 1 and trained.diverged_seeds:
        seeds = "One run with these settings ended."
    if diverged := sorted(trained.diverged_seeds):
        seeds += f"\n**{len(diverged)} more diverged** (seed {_text(diverged)}) and have no accuracy: others may, too."
    if run.model.dtype != "float32":
        seeds += (
            f"\n\nThe run computed in {run.model.dtype}, `squeezenet_jax` computes these weights in float32: some\n"
        )
        seeds += "images may be answered otherwise."
    return f"""## What the accuracy means

Every readable image of the split counts once. With p the share of right answers among n images, the 95 % interval is
Wilson's: (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n), z = {Z:.2f}. It covers what the choice of these images
leaves open, but neither another seed nor images of another kind.

{seeds}"""


def _origin(weights: Weights) -> str:
    return f"## Origin\n\nWhat the exported file says: {_provenance(weights.provenance) or 'nothing'}."


def _unknown(trained: Trained | None) -> str:
    missing = ["The licence. The owner of the weights has to say it, in the first lines of this file."]
    if trained:
        missing.append(
            "The accuracy on images from elsewhere, on damaged ones, or on parts of the data. None of it was measured."
        )
        missing.append("How the dataset was collected and labelled. See the dataset's own description.")
    else:
        missing.append("The accuracy, and what the network was trained on and how, beyond the origin above.")
    return "\n".join(["## Not known", "", *(f"- {what}" for what in missing)])


def _provenance(origin: Mapping[str, Any]) -> str:
    return ", ".join(f"{_plain(key)} {_code(value)}" for key, value in origin.items())


def _text(value: Any) -> str:
    return ", ".join(f"{x:g}" for x in value) if isinstance(value, list | tuple) else str(value)


def _plain(value: object) -> str:
    """Text from a file or a config, harmless in Markdown."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", printable(" ".join(str(value).split())))


def _code(value: object) -> str:
    """Such text between backticks."""
    return f"`{printable(' '.join(str(value).split())).replace('`', chr(39)).replace('|', '/')}`"


def _yaml(value: Mapping[str, Any] | Sequence[Any], indent: str = "") -> str:
    """Block YAML of nested mappings and lists; every scalar as JSON, which YAML contains."""
    lines = []
    keys = [f"{key}:" for key in value] if isinstance(value, Mapping) else ["-"] * len(value)
    for head, x in zip(keys, value.values() if isinstance(value, Mapping) else value, strict=True):
        if isinstance(x, Mapping) and head == "-":
            lines.append(f"{indent}- {_yaml(x, indent + '  ').lstrip()}")
        elif isinstance(x, Mapping | list):
            lines.append(f"{indent}{head}\n{_yaml(x, indent + '  ')}")
        else:
            scalar = json.dumps(printable(x) if isinstance(x, str) else x, ensure_ascii=False)
            lines.append(f"{indent}{head} {scalar}\n")
    return "".join(lines)
