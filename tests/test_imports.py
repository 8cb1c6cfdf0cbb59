"""Imports run one way, between folders and inside them, and what must start fast imports no jax."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "squeezenet_jax"
# Every folder (and lone module) of the package; each imports only from those before it.
ORDER = ["system", "network", "settings", "data", "runs", "weights", "compress", "training", "export", "report"]
ORDER += ["experiment", "commands", "__init__", "__main__"]
STANDARD_LIBRARY_ONLY = ["__init__", "settings", "network.architecture", "network.memory", "network.trace"]
STANDARD_LIBRARY_ONLY += [
    f"system.{name}" for name in ("atomic", "children", "cores", "errors", "fields", "malloc", "nested")
]
STANDARD_LIBRARY_ONLY += [
    "system.randomness",
    *(f"system.storage{name}" for name in ("", ".copies", ".uploads", ".lease", ".buckets")),
]


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


NAMES = {name_of(path): path for path in modules()}


def imported(path):
    """Modules of this package that a file imports at run time, wherever in it the import stands."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            base = (node.module or "").split(".")
            if base[0] == "squeezenet_jax":
                for alias in node.names:
                    whole = ".".join([*base[1:], alias.name])
                    yield whole if whole in NAMES else ".".join(base[1:]) or "__init__"
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("squeezenet_jax."):
                    yield alias.name.removeprefix("squeezenet_jax.")


@pytest.mark.parametrize("name", NAMES)
def test_flags_and_config_dicts_stay_outside_the_package(name):
    for node in ast.walk(ast.parse(NAMES[name].read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & {"absl", "ml_collections"}


def test_every_folder_has_its_place_and_holds_about_a_dozen_files():
    assert {name.split(".")[0] for name in NAMES} <= set(ORDER)
    for folder in [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__")]:
        entries = [path for path in folder.iterdir() if path.name not in ("__pycache__", "py.typed")]
        assert len(entries) <= 15, folder


@pytest.mark.parametrize("name", NAMES)
def test_folders_import_only_from_folders_before_them(name):
    own = name.split(".")[0]
    for other in imported(NAMES[name]):
        folder = other.split(".")[0]
        assert folder == own or ORDER.index(folder) < ORDER.index(own), f"{name} imports {other}"


def test_files_do_not_import_each_other_in_a_circle():
    graph = {name: set(imported(path)) - {name} for name, path in NAMES.items()}
    while ends := [name for name, others in graph.items() if not others & graph.keys()]:
        for name in ends:
            del graph[name]
    assert not graph, f"circle among {sorted(graph)}"


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_what_must_import_at_once_is_standard_library_only(name):
    for node in ast.walk(ast.parse(NAMES[name].read_text())):
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


def test_the_library_takes_nothing_heavy_until_it_is_used():
    nothing = imports_after("")
    taken = imports_after("import squeezenet_jax; dir(squeezenet_jax)") - nothing
    assert {name.split(".")[0] for name in taken} <= sys.stdlib_module_names | {"squeezenet_jax"}
    assert {name for name in taken if name.startswith("squeezenet_jax.")} == set()
    used = imports_after("import squeezenet_jax; squeezenet_jax.trace, squeezenet_jax.build, squeezenet_jax.UserError")
    assert not {"jax", "numpy", "flax", "PIL"} & used


def test_data_needs_no_jax():
    assert "jax" not in imports_after("import squeezenet_jax.data.batches, squeezenet_jax.data.tfds_source")


def test_experiments_need_no_jax():
    names = [path.stem for path in (PACKAGE.parent / "experiments").glob("*.py")]
    assert len(names) > 10
    imports = (f"import experiments.{name}; assert 'jax' not in sys.modules, '{name}'" for name in names)
    assert "experiments.bypass" in imports_after("\n".join(imports))
