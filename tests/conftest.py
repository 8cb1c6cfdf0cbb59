"""Eight virtual CPU devices for every test, and settings small enough to train in seconds."""

import os
import signal
import tempfile
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Eight devices on two busy cores may be slow to meet, and XLA gives up after 40 s. Most of the tests' time is
# compilation: at level 1 instead of 3, and by emitters that jaxlib 0.10 still has, it takes 0.6 of the time.
os.environ["XLA_FLAGS"] = "--xla_cpu_collective_call_terminate_timeout_seconds=300 --xla_backend_optimization_level=1"
if version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# Tests, their subprocesses and xdist's workers share what they compile.
CACHE = tempfile.TemporaryDirectory(prefix="squeezenet_jax_tests_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", CACHE.name)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Where a shell has started the tests in its background, Ctrl-C is ignored, and what they start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from absl import flags

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

pytest.register_assert_rewrite(
    "trainings", "several_processes"
)  # what differs is shown, as where a test itself asserts

from tiny_settings import make_settings

from squeezenet_jax.settings import Settings

flags.FLAGS.mark_as_parsed()  # array_record reads absl flags, which nobody parses here


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", metavar="K/N", help="of the tests marked `long`, only the K-th of N shares (from 0)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1200))  # one takes five minutes where two busy cores are slow
    if share := config.getoption("share"):
        k, n = map(int, share.split("/"))
        long = sorted(item.nodeid for item in items if item.get_closest_marker("long"))
        others = {nodeid for number, nodeid in enumerate(long) if number % n != k}
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in others])
        items[:] = [item for item in items if item.nodeid not in others]
    # The longest first, so that no worker begins one when the others are about to end.
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="module")
def google_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A bucket of Google's on loopback, and this process's environment leading to it."""
    for package in ("google.cloud.storage", "gcp_storage_emulator"):
        pytest.importorskip(package)
    from store_servers import reached

    with reached("gs", tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture(autouse=True)
def nothing_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps in the tests' own process start no others that compile for settings to come; launch.py's do."""
    from squeezenet_jax.experiment import ahead

    monkeypatch.setattr(ahead, "_possible", lambda: False)


@pytest.fixture
def tiny() -> Callable[..., Settings]:
    return make_settings
