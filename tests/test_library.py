"""The package as a library: installed outside of the checkout, its examples, its public names, its dependencies.

The slow tests install it as a user does, with `pip install CHECKOUT` into a new environment. Its dependencies are not
downloaded again: a .pth file shows the new environment those of the environment that runs the tests.
"""

import ast
import email
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

import squeezenet_jax
from squeezenet_jax.system import malloc
from squeezenet_jax.weights import PREPROCESSINGS

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# The docstring owns the examples.
BLOCKS = re.compile(r"(?:^    .+\n(?:\n(?=    ))?)+", re.MULTILINE)
EXAMPLES = [textwrap.dedent(block) for block in BLOCKS.findall(squeezenet_jax.__doc__)]
CLASSIFY, NEW_NETWORK, TABLE = EXAMPLES


# ---- names ----------------------------------------------------------------------------------------------------------


def test_every_public_name_is_there_and_listed():
    for name in squeezenet_jax.__all__:
        assert getattr(squeezenet_jax, name).__name__ == name
    assert set(squeezenet_jax.__all__) <= set(dir(squeezenet_jax))


def test_a_name_is_listed_before_it_is_used():
    code = "import squeezenet_jax; print(*dir(squeezenet_jax))"
    listed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(squeezenet_jax.__all__) <= set(listed.split())


def test_type_checkers_see_the_same_names_from_the_same_modules():
    tree = ast.parse(Path(squeezenet_jax.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    seen = {alias.asname: line.module.removeprefix("squeezenet_jax.") for line in block.body for alias in line.names}
    assert seen == squeezenet_jax._OWNERS
    assert (ROOT / "squeezenet_jax" / "py.typed").is_file()


def test_no_public_name_is_a_modules():
    """Importing the module would put it in the place of the function."""
    modules = {path.stem for path in (ROOT / "squeezenet_jax").iterdir()}
    assert not modules & set(squeezenet_jax.__all__)


def test_a_wrong_name_says_the_nearest():
    with pytest.raises(AttributeError, match=r'unknown value "laod".*did you mean "load"'):
        squeezenet_jax.laod  # noqa: B018


# ---- dependencies and pages -----------------------------------------------------------------------------------------


def requirements(file):
    lines = (line.partition(" #")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def files_of_extras():
    """Extra, or None for what everybody needs -> requirements file."""
    dynamic = PYPROJECT["tool"]["setuptools"]["dynamic"]
    groups = {None: dynamic["dependencies"], **dynamic["optional-dependencies"]}
    return {extra: source["file"][0] for extra, source in groups.items() if len(source["file"]) == 1}


def test_dependencies_stand_in_requirements_files_only():
    files = files_of_extras()
    assert files == {
        None: "requirements.txt",
        "export": "requirements-export.txt",
        "slurm": "requirements-slurm.txt",
        "hub": "requirements-hub.txt",
        "gcs": "requirements-gcs.txt",
        "s3": "requirements-s3.txt",
        "tensorboard": "requirements-tensorboard.txt",
        "wandb": "requirements-wandb.txt",
        "dev": "requirements-checks.txt",
    }
    for file in files.values():
        assert requirements(file)  # and no line is one that setuptools cannot read, such as -r
    assert not {"dependencies", "optional-dependencies"} & PYPROJECT["project"].keys()
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [f"-r {files[None]}", f"-r {files['dev']}"]


def examples_of(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_the_examples_are_of_five_lines_and_python_in_the_readme_is_one_of_them():
    assert [sum(map(bool, example.splitlines())) for example in EXAMPLES] == [4, 5, 3]
    assert set(examples_of(ROOT / "README.md")) == set(EXAMPLES)


# ---- installed ------------------------------------------------------------------------------------------------------


def run(*command, cwd, **env):
    """A program that knows nothing of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "GLIBC_TUNABLES")}
    command = [str(part) for part in command]
    return subprocess.run(command, cwd=cwd, env=environment | env, capture_output=True, text=True, timeout=250)


def ignored(folder, names):
    """What the checkout holds that git does not."""
    top = {"runs", "build"} if Path(folder) == ROOT else set()
    return {name for name in names if name.startswith(".") or name.endswith(("__pycache__", ".egg-info"))} | top


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an environment into which the package was installed from a copy of the checkout."""
    root = tmp_path_factory.mktemp("library")
    shutil.copytree(ROOT, root / "checkout", ignore=ignored)
    environment = root / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (packages / "dependencies.pth").write_text("\n".join(p for p in sys.path if Path(p).name == "site-packages"))
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet"]
    alone = ["--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed", "--disable-pip-version-check"]
    result = run(*pip, *alone, root / "checkout", cwd=root)
    assert result.returncode == 0, result.stderr
    assert (packages / "squeezenet_jax").is_dir()
    return environment


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the first example names: weights of torchvision's names, labels, a photograph."""
    folder = tmp_path_factory.mktemp("user")
    model = squeezenet_jax.SqueezeNet(squeezenet_jax.build("v1.1", geometry="torchvision", width=0.25), num_classes=7)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    params["conv10"]["bias"] += 1  # above the ReLU, so that the classes differ
    weights = squeezenet_jax.Weights(model.arch, params, 7, 3, PREPROCESSINGS["torchvision"])
    squeezenet_jax.save(folder / "squeezenet_v1.1.safetensors", weights, "torchvision")
    (folder / "imagenet_labels.txt").write_text("ant\nbee, bumblebee\ncat\ndog\nemu\nfox\ngnu\n")
    pixels = rng.integers(0, 256, (300, 280, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "cat.jpg")
    return folder


def python(installed, folder, code):
    result = run(installed / "bin" / "python", "-W", "error::UserWarning", "-c", code, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.slow
def test_the_package_alone_is_installed_whole_with_the_dependencies_of_the_requirements_files(installed):
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(installed)}))
    sources = [path for path in (ROOT / "squeezenet_jax").rglob("*.*") if path.suffix in (".py", ".css", ".js")]
    modules = {str(path.relative_to(ROOT)) for path in sources}
    (info,) = packages.glob("squeezenet_jax-*.dist-info")
    files = {line.split(",")[0] for line in (info / "RECORD").read_text().splitlines()}
    files = {file for file in files if not file.startswith(info.name) and not file.endswith(".pyc")}
    assert files == modules | {"squeezenet_jax/py.typed", "../../../bin/squeezenet-jax"}

    metadata = email.message_from_string((info / "METADATA").read_text())
    found = {extra: [] for extra in files_of_extras()}
    for line in metadata.get_all("Requires-Dist"):
        extra = re.search(r'extra == "(\w+)"', line)
        found[extra and extra[1]].append(Requirement(line))
    for extra, file in files_of_extras().items():
        expected = [(requirement.name, requirement.specifier) for requirement in requirements(file)]
        assert [(requirement.name, requirement.specifier) for requirement in found[extra]] == expected
    assert set(metadata.get_all("Provides-Extra")) == files_of_extras().keys() - {None}
    assert metadata["Version"] == squeezenet_jax.__version__


@pytest.mark.slow
def test_example_that_classifies_a_file_prints_what_the_command_predicts(installed, folder):
    printed = python(installed, folder, CLASSIFY)
    command = [sys.executable, "-m", "squeezenet_jax", "predict", folder / "squeezenet_v1.1.safetensors"]
    command += [folder / "cat.jpg", "--preprocessing=caffe", f"--labels={folder / 'imagenet_labels.txt'}", "--top=3"]
    result = run(*command, "--format=json", cwd=ROOT)
    (row,) = json.loads(result.stdout)
    assert printed == [f"{top['probability']:6.1%}  {top['label']}" for top in row["top"]]
    assert len(set(printed)) == 3


@pytest.mark.slow
def test_example_of_a_new_network_gives_finite_logits(installed, folder):
    code = "print(logits.shape, logits.dtype, bool(jax.numpy.isfinite(logits).all()), squeezenet_jax.__file__)"
    (line,) = python(installed, folder, f"{NEW_NETWORK}import squeezenet_jax\n{code}")
    assert line.startswith(f"(8, 10) float32 True {installed}")


@pytest.mark.slow
def test_the_pages_example_computes_what_the_command_predicts(installed, folder, tmp_path):
    with_weights, _ = examples_of(ROOT / "docs" / "library.md")
    python(installed, folder, f"{with_weights}np.save({str(tmp_path / 'logits.npy')!r}, logits)")
    command = [sys.executable, "-m", "squeezenet_jax", "predict", folder / "squeezenet_v1.1.safetensors"]
    command += [folder / "cat.jpg", "--preprocessing=caffe", f"--logits={tmp_path / 'logits.npz'}"]
    assert run(*command, cwd=ROOT).returncode == 0
    with np.load(tmp_path / "logits.npz") as expected:
        np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.slow
def test_the_pages_training_loop_trains(installed, folder):
    _, loop = examples_of(ROOT / "docs" / "library.md")
    (line,) = python(installed, folder, loop)
    assert float(re.fullmatch(r"top-1 (.*) %", line)[1]) > 92, line


@pytest.mark.slow
def test_example_of_a_table_prints_the_commands_numbers(installed, folder):
    rows = [line.split() for line in python(installed, folder, TABLE)]
    result = run(installed / "bin" / "squeezenet-jax", "summary", "--bypass=complex", "--format=json", cwd=folder)
    expected = json.loads(result.stdout)
    assert [(row[0], row[-2], row[-1]) for row in rows] == [
        (layer["name"], f"{layer['params']:,}", f"{layer['macs']:,}") for layer in expected["layers"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["summary", "--version=v1.1", "--width=0.5"], 0),
        (["--help"], 0),
        (["sumary"], 2),
        (["predict", "nowhere.safetensors", "cat.jpg"], 2),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else str(value),
)
def test_the_console_script_is_the_module(installed, folder, tmp_path, arguments, code):
    """Down to its restart with another malloc, which a module that each interpreter imports first writes down."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nprint('start', os.environ.get('GLIBC_TUNABLES'), file=sys.stderr)\n"
    )
    programs = ([installed / "bin" / "squeezenet-jax"], [installed / "bin" / "python", "-m", "squeezenet_jax"])
    script, module = (run(*program, *arguments, cwd=folder, PYTHONPATH=str(tmp_path)) for program in programs)
    assert (script.returncode, script.stdout, script.stderr) == (module.returncode, module.stdout, module.stderr)
    assert script.returncode == code
    starts = [line for line in script.stderr.splitlines() if line.startswith("start ")]
    tuned = f"start {malloc.TUNABLES['GLIBC_TUNABLES']}"
    assert starts == (["start None", tuned] if malloc._has_tunables() else ["start None"])


@pytest.mark.slow
def test_the_installed_package_has_what_a_report_is_made_of(installed, tmp_path):
    old = ROOT / "tests/old_files/2026_11_before_the_library/workdir"
    command = ["-m", "squeezenet_jax", "report", old, "--baseline", "bypass=none", "--out", tmp_path / "out"]
    result = run(installed / "bin" / "python", *command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<script>") == page.count("<style>") == 1
