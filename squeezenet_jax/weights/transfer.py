"""Weights as the start of a training (`model.init_from`): what of them fits a run's network and data."""

import functools
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from squeezenet_jax import weights
from squeezenet_jax.data import catalog, fingerprint
from squeezenet_jax.network.architecture import Architecture, with_geometry
from squeezenet_jax.runs.directory import RunDirectory
from squeezenet_jax.settings import DataSettings, ModelSettings
from squeezenet_jax.system import storage
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights import bundle, classes
from squeezenet_jax.weights.formats import run_directory
from squeezenet_jax.weights.formats.state_dicts import OTHERS, TAKEN


def initial_params(model: ModelSettings, data: DataSettings) -> dict[str, Any]:
    """Parameters of `model.init_from` for this run, nested as the model's; without conv10 where the classes differ.

    Classes are compared by name (`classes.py`): conv10 is put into the data's order where that is another.

    conv1 is turned to take RGB where the weights were trained on BGR. Raises `UserError` where the file can't be read,
    its layers are not the network's, or the run normalises pixels otherwise than the weights expect.
    """
    given = load(model)
    if given.channels != data.channels:
        raise UserError(f"data.channels: {data.channels} does not match model.init_from, which takes {given.channels}")
    _check_geometry(given.arch, model.architecture(), model.geometry)
    fields = ["norm", "activation", "squeeze_activation"]
    if any(spec.bypass == "conv" for _, spec in given.arch.fires()):
        fields.append("bypass_relu")
    for field in fields:
        ours, theirs = getattr(model, field), getattr(given.arch, field)
        if ours != theirs:
            raise UserError(f"model.{field}: {ours} is not that of the weights in model.init_from, which is {theirs}")
    _check_normalization(given.preprocessing, data)
    params = {name: dict(module) for name, module in given.params.items()}
    order = _classes(given, data)
    if order is None:
        del params["conv10"]
    else:
        params["conv10"] = {name: np.ascontiguousarray(x[..., list(order)]) for name, x in params["conv10"].items()}
        if model.conv10_relu != given.arch.conv10_relu:
            theirs = "with" if given.arch.conv10_relu else "without"
            _note(f"note: model.conv10_relu: {model.conv10_relu}, but conv10 of the weights was trained {theirs} it")
    if given.preprocessing.channel_order == "BGR":
        params["conv1"]["kernel"] = np.ascontiguousarray(params["conv1"]["kernel"][:, :, ::-1])
    expected = bundle.parameter_shapes(model.architecture(), channels=data.channels, num_classes=data.num_classes)
    found = {name: np.shape(leaf) for name, leaf in bundle.flatten(params).items()}
    try:
        bundle.check_shapes(found, {name: s for name, s in expected.items() if name.split("/")[0] in params})
    except UserError as error:
        raise UserError(f"model.init_from: {model.weights} cannot be the start of this network: {error}") from None
    return params


def check_unseen(model: ModelSettings, data: DataSettings) -> None:
    """Raises `UserError` where `model.init_from` is a run that was trained on images of `data.eval_split`.

    Or one that began with such a run, and so on (`lineage`). A file that was made from a run does not say it.
    """
    if data.allow_overlap:
        return
    for name, description in lineage(storage.expand(model.weights)):
        shared = fingerprint.trained_on(description, data.name, data.dir, data.eval_split)
        if shared:
            who = "model.init_from" if not name else f"{name}, with which model.init_from began,"
            split = description["settings"]["data"]["train_split"]
            catalog.check_shared(data, shared, f"{split}, which {who} was trained on")


def lineage(run: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("", run.json) of a run, then (place, run.json) of the one that it began with, and so on.

    As far as they are there. One that was trained again since, at the same place, is taken for the first one.
    """
    if not run.is_dir():
        return
    place, description, met = "", RunDirectory(run).read_description(), {run.resolve()}
    while True:
        yield place, description
        began = description.get("settings", {}).get("model", {})
        place = str(began.get("init_from") or "") if began.get("start") != "scratch" else ""
        try:
            path = storage.expand(place)
            if not place or not path.is_dir() or path.resolve() in met:
                return
            met.add(path.resolve())
            description = RunDirectory(path).read_description()
        except (UserError, OSError):  # it lay in a bucket, is somebody else's, or damaged
            return


def load(model: ModelSettings) -> weights.Weights:
    """What `model.init_from` names, with a note where it holds several networks; a `UserError` names the field."""
    try:
        given = weights.load(model.weights)
    except UserError as error:
        raise UserError(f"model.init_from: {error}") from None
    origin = given.provenance
    if OTHERS in origin and origin["source"] == Path(model.weights).name:  # else one was chosen when it was converted
        taken = origin.get(TAKEN, "the one at its top level")
        _note(f"note: of {model.weights}, {taken} is read; `convert --state-dict` makes a file of {origin[OTHERS]}")
    if said := run_directory.remark(origin):
        _note(f"note: model.init_from: {model.weights}: {said}")
    return given


def digest(model: ModelSettings) -> str:
    """Of the parameters and class names in `model.init_from`: equal for equal ones, wherever they lie."""
    given = load(model)
    sha256 = hashlib.sha256(repr(given.labels).encode())
    for name, tensor in sorted(bundle.flatten(given.params).items()):
        sha256.update(f"{name} {tensor.shape}".encode())
        sha256.update(np.ascontiguousarray(tensor).data)
    return sha256.hexdigest()[:16]


def _classes(given: weights.Weights, data: DataSettings) -> tuple[int, ...] | None:
    """Of each class of the data, that of the weights; None where they are others, for which a new conv10 is learnt."""
    if given.num_classes != data.num_classes:
        return None
    names = catalog.info(data.name, data.dir).class_names
    if given.labels and names:
        try:
            matched = classes.match(given.labels, given.num_classes, names)
        except UserError:
            return None
        return None if matched.how == "number" else matched.numbers  # a folder 3 is no cat
    lacking = "the weights in model.init_from" if not given.labels else f"the data {data.name}"
    try:
        numbers = classes.match((), given.num_classes, names or tuple(map(str, range(given.num_classes)))).numbers
    except UserError:  # their order is not known
        return None
    _note(f"note: {lacking} have no class names: conv10 is kept, since there are {given.num_classes} classes in both")
    return numbers


@functools.lru_cache
def _note(text: str) -> None:
    """Once; a sweep asks for the same weights again and again."""
    print(text, file=sys.stderr)


def _check_geometry(theirs: Architecture, ours: Architecture, geometry: str) -> None:
    """Refuses what shapes alone would let pass: the same kernels at other places. A bypass may differ on purpose."""
    strides = [(a.stem.stride, a.stem.pool, [len(group) for group in a.groups]) for a in (theirs, ours)]
    if strides[0] != strides[1]:
        raise UserError("model.init_from: the weights have another stem or other pools; see model.version, model.stem")
    borders = [(a.stem.padding, a.pool_ceil, a.conv10_padding) for a in (theirs, ours)]
    if borders[0] != borders[1]:
        fits = " or ".join(name for name in ("caffe", "torchvision") if with_geometry(theirs, name) == theirs) or "same"
        raise UserError(f"model.geometry: {geometry} is not that of the weights in model.init_from, which is {fits}")


def _check_normalization(preprocessing: weights.Preprocessing, data: DataSettings) -> None:
    """A run computes (pixel / 255 - mean) / std in RGB; the weights (pixel * scale - mean) / std in their own order."""
    order = -1 if preprocessing.channel_order == "BGR" else 1
    scale = 255 * preprocessing.scale
    for field, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
        expected = tuple(round(value / scale, 6) for value in values[::order])
        ours = np.broadcast_to(getattr(data, field), data.channels)
        if not np.allclose(ours, np.broadcast_to(expected, data.channels), atol=1e-4):
            raise UserError(f"data.{field}: {getattr(data, field)} is not what the weights expect, {expected}")
