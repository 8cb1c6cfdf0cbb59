"""Imports point down the levels only, and what must start fast imports no jax."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "squeezenet_jax"
# design: L0 knows nothing of jax; L1's modules do not know each other, save inside one folder; L2 puts them together.
LEVEL_0 = {"atomic", "errors", "memory", "nested", "architecture", "randomness", "settings"}
LEVEL_2 = {"steps", "train", "monitor", "sweep", "slurm", "commands", "export", "__main__"}
# Lower halves of level 1: they import level 0 at most.
OWN_LEVEL = {("model", "lowering"), ("report", "record"), ("weights", "checkpoint"), ("devices", "processes")}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def room(path):
    """The part of the package that a file belongs to: its folder, or its own name at the top."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if (node.module or "").startswith("squeezenet_jax"):
                parts = (node.module or "").split(".")[1:]
                yield from [parts[0]] if parts else [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("squeezenet_jax."):
                    yield alias.name.split(".")[1]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_flags_and_config_dicts_stay_outside_the_package(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & {"absl", "ml_collections"}


def level(name):
    return 0 if name in LEVEL_0 else 2 if name in LEVEL_2 else 1


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = room(path)
    for other in imported_rooms(path):
        if other == own or (own, other) in OWN_LEVEL:
            continue
        assert level(other) < level(own) or level(other) == level(own) != 1, f"{own} imports {other}"


def test_level_0_is_standard_library_only():
    for name in LEVEL_0:
        tree = ast.parse((PACKAGE / f"{name}.py").read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in names:
                top = module.split(".")[0]
                assert top in sys.stdlib_module_names or top == "squeezenet_jax", f"{name} imports {module}"


def imports_after(code):
    script = f"import sys\n{code}\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_data_needs_no_jax():
    assert "jax" not in imports_after("import squeezenet_jax.data.batches, squeezenet_jax.data.tfds_source")


@pytest.mark.parametrize("name", [path.stem for path in (PACKAGE.parent / "experiments").glob("*.py")])
def test_experiments_need_no_jax(name):
    assert "jax" not in imports_after(f"import experiments.{name}")
