"""An experiment's file and its config, whoever wrote it: imported, called, and each failure told in one line."""

import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from squeezenet_jax.system import nested
from squeezenet_jax.system.errors import UserError, unknown

MAPPINGS = ("BASELINE", "REQUIRED")  # of settings to something
CONSTANTS = (*MAPPINGS, "TUNE", "MARGIN")  # what an experiment's file may say beside its functions


def load_experiment(path: str, root: Path = Path()) -> ModuleType:
    """Imports an experiment file, below the current folder or `root`; it may import what lies beside it.

    Raises `UserError` where there is none, it lacks what an experiment has, or it cannot be imported.
    """
    file = next((file for file in (Path(path).expanduser(), root / path) if file.is_file()), None)
    if file is None or file.suffix != ".py":
        found = {
            str(p.relative_to(root)) for p in (root / "experiments").glob("*.py") if p.stem not in ("base", "__init__")
        }
        raise unknown("--config", path, sorted(found))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    beside = str(file.resolve().parent)
    if beside not in sys.path:
        sys.path.append(beside)
    if not _is_taken(file):
        sys.modules[file.stem] = module  # where dataclasses look for what their annotations name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--config: {path} cannot be imported ({reason(error)})") from error
    for name in vars(module):
        near = difflib.get_close_matches(name, CONSTANTS, n=1, cutoff=0.85) if name[0] != "_" else []
        if near and not hasattr(module, near[0]):
            raise UserError(f'--config: {path} has a {name}, which has no meaning; did you mean "{near[0]}"?')
    for name in ("get_config", "sweep", "BASELINE"):
        if not hasattr(module, name):
            raise UserError(f"--config: {path} is not an experiment: it has no {name}")
    for name in ("get_config", "sweep"):
        if not callable(getattr(module, name)):
            raise UserError(f"--config: {name} of {path} must be a function")
    for name in MAPPINGS:
        if not isinstance(value := getattr(module, name, {}), Mapping):
            raise UserError(f"--config: {name} of {path} must be a mapping with settings as keys, not {value!r}")
    return module


def get_config(experiment: ModuleType, path: str, preset: str) -> tuple[str, dict[str, Any]]:
    """(preset, flat config) of an experiment: the preset that is asked for or, where that is "", its default.

    The preset is "" where `get_config` takes no parameter. Raises `UserError` where preset and experiment do not fit.
    """
    parameters = inspect.signature(experiment.get_config).parameters
    if not parameters and preset:
        raise UserError(
            f"--config: {path} has no presets, since its get_config takes no parameter; leave out :{preset}"
        )
    if parameters and not preset:
        preset = next(iter(parameters.values())).default
        if not isinstance(preset, str):
            raise UserError(f"--config: {path} needs a preset, as in {path}:digits; its get_config has no default")
    try:
        config = experiment.get_config(preset) if parameters else experiment.get_config()
        return preset, nested.flatten(config.to_dict(), ".")
    except Exception as error:  # it may be anybody's code
        if isinstance(error, UserError):
            raise
        raise UserError(f"--config: get_config of {path} fails ({reason(error)})") from error


def _is_taken(file: Path) -> bool:
    """Whether other modules may import one of this name: an experiment may be called random.py."""
    if file.stem in sys.modules:
        return True
    found = importlib.util.find_spec(file.stem)
    return found is not None and found.origin != str(file.resolve())


def reason(error: Exception) -> str:
    """What went wrong in an experiment's file and where, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parent)
    places = [frame for frame in frames if not frame.filename.startswith((ours, "<"))]
    where = f"; {Path(places[-1].filename).name}, line {places[-1].lineno}" if places else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
