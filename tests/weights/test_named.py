"""Weights by name, with the real loading code, from servers on loopback."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from loopback import COMMIT, Answer, ModelHub, serve, use_hub
from PIL import Image
from weight_files import CLASSES, assert_same_params, state_dict, tiny_weights, torch_zip

import squeezenet_jax
from squeezenet_jax import weights
from squeezenet_jax.__main__ import main
from squeezenet_jax.settings import ModelSettings
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights import named, transfer

NETWORK = tiny_weights(geometry="torchvision")
CONTENT = torch_zip(state_dict(NETWORK))
FILE = f"squeezenet1_1-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"
NAME = "torchvision:squeezenet1_1"
NAMES = [f"name {k}" for k in range(CLASSES)]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder for downloads; torchvision's file is a tiny network of the same layout."""
    monkeypatch.setitem(named.TORCHVISION, "squeezenet1_1", FILE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SQUEEZENET_JAX_WEIGHTS", raising=False)
    return tmp_path / "cache" / "squeezenet_jax" / "weights"


@pytest.fixture
def mirror(kept, monkeypatch):
    """A server with torchvision's file, and what it answers: `mirror.answers[path]`."""
    answers = {f"/{FILE}": Answer(200, CONTENT)}
    with serve(lambda path: answers.get(path, Answer())) as server:
        monkeypatch.setenv("SQUEEZENET_JAX_TORCHVISION_URL", f"{server.url}/")
        server.answers = answers
        yield server


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A model hub with the same file as owner/net."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (requirements-hub.txt)")
    labels = json.dumps({"id2label": dict(enumerate(NAMES))}).encode()
    repositories = {
        "owner/net": {"README.md": b"# Net", "config.json": labels, "old/net.pth": CONTENT, "net.pth": CONTENT}
    }
    answer = ModelHub(repositories, gated=["owner/gated"])
    named._hub.cache_clear()
    with serve(answer) as server:
        use_hub(monkeypatch, server.url, tmp_path / "hub")
        server.repositories = repositories
        yield server
    named._hub.cache_clear()


def refused(name, *parts):
    with pytest.raises(UserError) as caught:
        squeezenet_jax.load(name)
    message = str(caught.value)
    assert message.startswith(f"{name}: ") and "\n" not in message
    for part in parts:
        assert part in message


def stopped(server):
    """The fixture's own stop finds it stopped."""
    server.stop()
    server.stop = lambda: None


# ---- torchvision ----------------------------------------------------------------------------------------------------


def test_the_first_load_downloads_and_the_second_needs_no_network(mirror, kept, capsys):
    first = squeezenet_jax.load(NAME)
    assert capsys.readouterr().err == f"downloading {mirror.url}/{FILE} to {kept}\n"
    assert_same_params(first.params, NETWORK.params)
    assert first.arch == NETWORK.arch and first.preprocessing == weights.PREPROCESSINGS["torchvision"]
    assert first.provenance["name"] == NAME and "assumed preprocessing" not in first.provenance
    assert [path.name for path in kept.iterdir()] == [FILE]
    stopped(mirror)
    assert_same_params(squeezenet_jax.load(NAME).params, first.params)
    assert capsys.readouterr().err == "" and mirror.asked == [f"GET /{FILE}"]
    assert squeezenet_jax.load(NAME, preprocessing="caffe").preprocessing.name == "caffe"


def test_the_catalogue_is_torchvisions():
    assert named.TORCHVISION["squeezenet1_0"] == "squeezenet1_0-b66bff10.pth"
    assert named.TORCHVISION_URL == "https://download.pytorch.org/models"


def test_another_file_is_refused_and_not_kept(mirror, kept):
    mirror.answers[f"/{FILE}"] = Answer(200, torch_zip(state_dict(tiny_weights(geometry="torchvision", seed=1))))
    refused(NAME, f"{mirror.url}/{FILE}", "its SHA-256 begins with", FILE[14:22], "was not kept")
    assert list(kept.iterdir()) == []


def test_a_kept_file_that_was_damaged_is_downloaded_again(mirror, kept, capsys):
    kept.mkdir(parents=True)
    (kept / FILE).write_bytes(CONTENT[:-1] + b"?")
    assert_same_params(squeezenet_jax.load(NAME).params, NETWORK.params)
    assert f"{kept / FILE} is damaged" in capsys.readouterr().err and (kept / FILE).read_bytes() == CONTENT


def test_a_file_that_was_put_there_by_hand_is_taken(mirror, kept):
    kept.mkdir(parents=True)
    (kept / FILE).write_bytes(CONTENT)
    assert_same_params(squeezenet_jax.load(NAME).params, NETWORK.params)
    assert mirror.asked == []


@pytest.mark.parametrize("cut", [0, 1000])
def test_a_cut_connection_leaves_nothing_and_the_next_load_is_right(mirror, kept, cut):
    mirror.answers[f"/{FILE}"] = Answer(200, CONTENT, cut=cut)
    refused(NAME, f"the connection was cut after {cut:,} bytes")
    assert list(kept.iterdir()) == []
    mirror.answers[f"/{FILE}"] = Answer(200, CONTENT)
    assert_same_params(squeezenet_jax.load(NAME).params, NETWORK.params)


def test_a_full_disk_is_one_line_and_leaves_nothing(mirror, kept, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(NAME, f"{kept / FILE}: No space left on device", "SQUEEZENET_JAX_WEIGHTS names another folder")
    assert list(kept.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line_before_anything_is_downloaded(mirror, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SQUEEZENET_JAX_WEIGHTS", str(tmp_path / "file" / "weights"))
    refused(NAME, f"{tmp_path / 'file' / 'weights'}: Not a directory", "SQUEEZENET_JAX_WEIGHTS")
    assert mirror.asked == []


def test_without_a_network_a_line_says_what_was_tried_and_where_the_file_may_be_put(mirror, kept):
    stopped(mirror)
    refused(NAME, f"{mirror.url}/{FILE} cannot be downloaded (Connection refused)", "by hand", str(kept / FILE))
    assert list(kept.iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(Answer(), "404 Not Found"), (Answer(503), "503"), (Answer(302, headers={"Location": "x:y"}), "302")],
)
def test_what_a_server_answers_instead_is_said(mirror, kept, answer, reason):
    mirror.answers[f"/{FILE}"] = answer
    refused(NAME, "cannot be downloaded", reason)
    assert list(kept.iterdir()) == []


def test_two_processes_at_once_both_get_the_weights(mirror, kept):
    """Neither is answered before both have asked."""
    both = threading.Barrier(2, timeout=60)

    class Waits(Answer):
        @property
        def body(self):
            both.wait()
            return CONTENT

    mirror.answers[f"/{FILE}"] = Waits(200)
    code = f"""
import sys, types, squeezenet_jax
package = types.ModuleType("squeezenet_jax.weights")  # its own __init__ takes seconds: jax
sys.modules[package.__name__], package.__path__ = package, [squeezenet_jax.__path__[0] + "/weights"]
from squeezenet_jax.weights import named
named.TORCHVISION["squeezenet1_1"] = {FILE!r}
print(named.find({NAME!r}, ()).path)
"""
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=Path(__file__).parents[2], **pipes) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=100)
        assert (process.returncode, out) == (0, f"{kept / FILE}\n"), err
    assert len(mirror.asked) == 2 and [path.name for path in kept.iterdir()] == [FILE]
    assert_same_params(squeezenet_jax.load(NAME).params, NETWORK.params)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("torchvision:squeezenet1_2", ["allowed: squeezenet1_0, squeezenet1_1", 'did you mean "squeezenet1_']),
        ("torchvision:", ['unknown value ""']),
        ("torchvison:squeezenet1_1", ['"torchvison:"', 'did you mean "torchvision:"']),
        ("HF:owner/net", ["allowed: torchvision:, hf:"]),
        ("hf:net", ["it must be hf:OWNER/NAME"]),
        ("hf:owner/net@", ["it must be hf:OWNER/NAME"]),
        ("other:net", ["no such file"]),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(name, parts):
    refused(name, *parts)


def test_a_name_is_a_name_also_where_a_file_is_called_so(mirror, kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = tiny_weights(geometry="torchvision", seed=1)
    Path(NAME).write_bytes(torch_zip(state_dict(other)))
    assert_same_params(squeezenet_jax.load(NAME).params, NETWORK.params)
    for path in (f"./{NAME}", Path(NAME)):
        assert_same_params(squeezenet_jax.load(path).params, other.params)


def test_commands_take_names_and_ask_for_class_names(mirror, kept, tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (230, 230, 3), np.uint8)).save(tmp_path / "cat.png")
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    assert main(["predict", NAME, str(tmp_path / "cat.png")]) == 0
    out, err = capsys.readouterr()
    assert out.count("%  class ") == CLASSES
    assert err.splitlines()[1:] == [f"note: {NAME} has no class names; --labels FILE gives them, one a line"]
    labels = ["--labels", str(tmp_path / "labels.txt")]
    assert main(["predict", NAME, str(tmp_path / "cat.png"), *labels]) == 0
    out, err = capsys.readouterr()
    assert out.count("%  name ") == CLASSES and err == ""
    assert main(["convert", NAME, str(tmp_path / "w.safetensors"), *labels]) == 0
    assert weights.load(tmp_path / "w.safetensors").provenance["name"] == NAME
    assert main(["evaluate", NAME]) == 2 and "DATA: is missing" in capsys.readouterr().err


def test_a_run_that_starts_from_a_name_is_the_run_that_starts_from_the_file(mirror, kept, tmp_path):
    (tmp_path / "w.pth").write_bytes(CONTENT)
    digests = {transfer.digest(ModelSettings(init_from=text)) for text in (NAME, str(tmp_path / "w.pth"))}
    assert len(digests) == 1
    with pytest.raises(UserError, match=r"^model.init_from: torchvision:squeezenet: .*did you mean"):
        transfer.load(ModelSettings(init_from="torchvision:squeezenet"))


# ---- a model hub ----------------------------------------------------------------------------------------------------


def test_a_repository_is_downloaded_once_and_then_needs_no_network(hub, tmp_path, capsys):
    first = squeezenet_jax.load("hf:owner/net")
    assert_same_params(first.params, NETWORK.params)
    assert first.labels == tuple(NAMES)
    assert first.provenance["name"] == f"hf:owner/net@{COMMIT}"
    asked = len(hub.asked)
    squeezenet_jax.load("hf:owner/net")
    assert len(hub.asked) == asked  # looked up once in a process
    stopped(hub)
    named._hub.cache_clear()
    capsys.readouterr()
    again = squeezenet_jax.load("hf:owner/net")
    assert_same_params(again.params, first.params)
    assert again.labels == first.labels and again.provenance == first.provenance
    note = capsys.readouterr().err
    assert "cannot be reached (" in note
    assert f"the copy of main that was downloaded earlier is used, commit {COMMIT}" in note


def test_a_file_of_a_repository_and_a_revision_can_be_named(hub, capsys):
    name = f"hf:owner/net@{COMMIT}/old/net.pth"
    first = squeezenet_jax.load(name)
    assert first.provenance["name"] == name and first.labels == ()
    assert not any("README" in asked or "config" in asked for asked in hub.asked)
    stopped(hub)
    named._hub.cache_clear()
    capsys.readouterr()
    assert_same_params(squeezenet_jax.load(name).params, NETWORK.params)
    assert capsys.readouterr().err == ""  # a commit does not move


def test_what_a_hub_refuses_is_one_line(hub):
    hub.repositories |= {"owner/gated": {"net.pth": CONTENT}, "owner/text": {"README.md": b"# Nothing"}}
    hub.repositories["owner/several"] = {"a.pth": CONTENT, "b.pth": CONTENT}
    refused("hf:owner/nat", f"{hub.url}/owner/nat is not there, or private", "HF_TOKEN")
    refused("hf:owner/gated", f"{hub.url}/owner/gated grants access on request", "hf auth login")
    refused("hf:owner/net@v2", "has no revision v2")
    refused("hf:owner/net/nat.pth", '"nat.pth"', 'did you mean "net.pth"')
    refused("hf:owner/text", "no file with a suffix of weights, but README.md")
    refused("hf:owner/several", "has several weights files; name one of a.pth, b.pth")


def test_what_no_squeezenet_is_is_not_downloaded(hub):
    class Large(bytes):
        size = 1 << 40

    hub.repositories["owner/large"] = {"model.safetensors": Large()}
    refused("hf:owner/large", "model.safetensors: larger than 256 MiB")
    assert not any("resolve" in asked for asked in hub.asked)


def test_without_a_network_and_a_copy_a_line_says_what_was_tried(hub):
    stopped(hub)
    refused("hf:owner/net", f"{hub.url}/owner/net cannot be reached", "Connection refused", "HF_ENDPOINT")


def test_a_damaged_copy_is_refused_and_downloaded_again(hub, tmp_path):
    squeezenet_jax.load("hf:owner/net")
    for file in ("net.pth", "config.json"):
        link = tmp_path / "hub" / "models--owner--net" / "snapshots" / COMMIT / file
        link.resolve().write_bytes(link.read_bytes()[:-1] + b"?")
        named._hub.cache_clear()
        refused("hf:owner/net", f"{file} is not what the hub has", "it was removed")
        assert_same_params(squeezenet_jax.load("hf:owner/net").params, NETWORK.params)


def test_a_full_disk_under_the_hubs_cache_is_one_line(hub, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "move", full)
    refused("hf:owner/net", "cannot be downloaded (No space left on device)", str(tmp_path / "hub"), "HF_HOME")


def test_without_the_client_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # what Python has for a module that cannot be imported
    refused("hf:owner/net", "needs huggingface_hub", "pip install -r requirements-hub.txt")
