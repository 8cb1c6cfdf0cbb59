"""Weights by name: `torchvision:squeezenet1_1` and `hf:OWNER/NAME[@REVISION][/FILE]`, downloaded once and kept.

| name           | downloaded by                     | kept in                             | verified by             |
|----------------|-----------------------------------|-------------------------------------|-------------------------|
| `torchvision:` | this module                       | $SQUEEZENET_JAX_WEIGHTS, or         | the SHA-256's digits in |
|                |                                   | ~/.cache/squeezenet_jax/weights     | the file's name         |
| `hf:`          | huggingface_hub (the extra `hub`) | that package's own cache ($HF_HOME) | the hub's digest        |

What begins with one of these is a name, also where a file is called so (`./hf:x` is that file): the same command means
the same in every folder. Two processes that load at once may both download; each file appears complete, in one step.
A repository of the hub is looked up once in a process, so the runs of a sweep start from the same commit.
"""

import difflib
import functools
import hashlib
import http.client
import importlib
import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from squeezenet_jax.system import atomic
from squeezenet_jax.system.errors import UserError, check_choice, shown, unknown
from squeezenet_jax.weights.bundle import MAX_BYTES, MAX_FILES, listing

# torchvision/models/squeezenet.py, SqueezeNet1_0_Weights and SqueezeNet1_1_Weights; the digits are the SHA-256's first.
TORCHVISION = {"squeezenet1_0": "squeezenet1_0-b66bff10.pth", "squeezenet1_1": "squeezenet1_1-b8a52dc0.pth"}
TORCHVISION_URL = "https://download.pytorch.org/models"
SCHEMES = ("torchvision", "hf")
CONFIG = "config.json"  # of a hub's folder; may name the classes
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
TIMEOUT = 20  # seconds without a byte
CHUNK = 1 << 18  # bytes


class Found(NamedTuple):
    """Where the weights of a name lie now."""

    path: Path  # a file, or a folder of a hub
    name: str  # what gives the same weights again
    preprocessing: str | None  # where the name says it


def find(text: str, suffixes: tuple[str, ...]) -> Found | None:
    """Downloads the weights of a name unless they are here; None for what is a path.

    Of a whole repository of a hub, files with one of `suffixes` are downloaded.

    Raises `UserError` for an unknown name, without a network, for a wrong digest, and where there is no room.
    """
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "torchvision":
        return Found(_torchvision(rest), text, "torchvision")
    if colon and scheme == "hf":
        return _hub(rest, suffixes)
    if colon and difflib.get_close_matches(scheme.lower(), SCHEMES, n=1) and not os.path.exists(text):
        raise unknown("name", f"{scheme}:", [f"{known}:" for known in SCHEMES])
    return None


def folder() -> Path:
    """Where torchvision's files are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    chosen = os.environ.get("SQUEEZENET_JAX_WEIGHTS") or os.path.join(cache, "squeezenet_jax", "weights")
    return Path(os.path.expanduser(chosen))


def _torchvision(name: str) -> Path:
    file = TORCHVISION[check_choice("torchvision", name, TORCHVISION)]
    path = folder() / file
    base = os.environ.get("SQUEEZENET_JAX_TORCHVISION_URL") or TORCHVISION_URL
    expected = file.rpartition("-")[2].partition(".")[0]
    try:
        if path.is_file():
            with path.open("rb") as kept:
                if hashlib.file_digest(kept, "sha256").hexdigest().startswith(expected):
                    return path
            print(f"note: {path} is damaged (its SHA-256 is not {expected}...) and is replaced", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)  # before the download: where there is no place, it is no use
        content = _download(f"{base.rstrip('/')}/{file}", path)
        digest = hashlib.sha256(content).hexdigest()
        if not digest.startswith(expected):
            raise UserError(
                f"what {base.rstrip('/')}/{file} gives is another file: its SHA-256 begins with {digest[:8]}, not with "
                f"{expected}; it was not kept"
            )
        atomic.write(path, content)
    except OSError as error:
        where = "the environment variable SQUEEZENET_JAX_WEIGHTS names another folder"
        raise UserError(f"{error.filename or path}: {error.strerror or error}; {where}") from None
    return path


def _download(url: str, path: Path) -> bytes:
    """The content of a file of at most `MAX_BYTES`; `path` is where it is going to lie."""
    content = bytearray()
    terminal = sys.stderr.isatty()
    print(f"downloading {url} to {path.parent}", file=sys.stderr)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "squeezenet_jax"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            size = int(response.headers.get("Content-Length") or 0)
            while chunk := response.read(CHUNK):
                content += chunk
                if terminal:
                    of = f" of {size / 1e6:.1f}" if size else ""
                    print(f"\r{len(content) / 1e6:.1f}{of} MB", end="", file=sys.stderr, flush=True)
                if len(content) > MAX_BYTES:
                    raise UserError(f"{url} gives more than {MAX_BYTES >> 20} MiB; no SqueezeNet is as large")
        if len(content) < size:
            raise http.client.IncompleteRead(bytes(content), size - len(content))
    except http.client.IncompleteRead:
        reason = f"the connection was cut after {len(content):,} bytes"
    except urllib.error.HTTPError as error:
        reason = f"{error.code} {error.reason}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = _reason(getattr(error, "reason", error))
    else:
        return bytes(content)
    finally:
        if terminal:
            print(file=sys.stderr)
    raise UserError(
        f"{url} cannot be downloaded ({reason}); try again with a network, let SQUEEZENET_JAX_TORCHVISION_URL name a "
        f"mirror, or put the file there by hand: {path}"
    )


@functools.lru_cache
def _hub(text: str, suffixes: tuple[str, ...]) -> Found:
    """The file of a repository of a model hub, or the folder with what may be its weights and its `CONFIG`."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+?)(?:@([^/@]+))?(?:/(.+))?", text)
    if match is None:
        raise UserError("is not allowed; it must be hf:OWNER/NAME, and may have @REVISION and then /FILE behind it")
    repository, revision, file = match[1], match[2] or "main", match[3]
    hub, constants, errors = (_client(part) for part in ("", ".constants", ".errors"))
    where = f"{constants.ENDPOINT}/{repository}"
    sizes: dict[str, int] = {}
    try:
        found = hub.HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=TIMEOUT)
        sizes = {sibling.rfilename: sibling.size or 0 for sibling in found.siblings}
        names = _chosen(sizes, file, suffixes)
        paths = [Path(hub.hf_hub_download(repository, name, revision=revision)) for name in names]
    except errors.GatedRepoError:
        raise UserError(f"{where} grants access on request: ask there, then {LOG_IN}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{where} is not there, or private: then {LOG_IN}") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{where} has no revision {revision}") from None
    except errors.HFValidationError:
        raise UserError(f"{shown(repository)} is no name of a repository") from None
    except (OSError, errors.HTTPError, json.JSONDecodeError) as error:
        if sizes:
            cache = f"in {constants.HF_HUB_CACHE}, which HF_HOME moves"
            raise UserError(f"{where} cannot be downloaded ({_reason(error)}); files are kept {cache}") from None
        paths = _kept(repository, revision, file, where, _reason(error))
    for path in paths:
        _check_digest(path)
    snapshot = paths[0].parents[len(Path(file).parts) - 1 if file else 0]
    name = f"hf:{repository}@{snapshot.name}"
    return Found(paths[0], f"{name}/{file}", None) if file else Found(snapshot, name, None)


def _chosen(sizes: Mapping[str, int], file: str | None, suffixes: tuple[str, ...]) -> list[str]:
    """The files to download, of a repository with files of these sizes: those that a folder's reader looks at."""
    weights = [name for name in sizes if name.lower().endswith(suffixes)]
    if file and file not in sizes:
        raise unknown("FILE", file, weights or sizes)
    wanted = [file] if file else [name for name in weights if "/" not in name]
    chosen = [name for name in wanted if sizes[name] <= MAX_BYTES]
    if wanted and not chosen:
        raise UserError(f"{listing(wanted)}: larger than {MAX_BYTES >> 20} MiB; no SqueezeNet is")
    if not chosen:
        raise UserError(f"has no file with a suffix of weights, but {listing(sizes) or 'none at all'}")
    return chosen[:MAX_FILES] + [CONFIG] * (not file and CONFIG in sizes)


def _kept(repository: str, revision: str, file: str | None, where: str, reason: str) -> list[Path]:
    """What `_hub` downloaded earlier; for where the hub does not answer."""
    try:
        snapshot = Path(_client().snapshot_download(repository, revision=revision, local_files_only=True))
        paths = [snapshot / file] if file else sorted(path for path in snapshot.iterdir() if path.is_file())
    except OSError:
        paths = []
    if not paths or not paths[0].is_file():
        raise UserError(
            f"{where} cannot be reached ({reason}), and no copy of it is here; try again with a network, let "
            "HF_ENDPOINT name a mirror, or fetch the files by hand and give their path"
        )
    if snapshot.name != revision:
        note = f"the copy of {revision} that was downloaded earlier is used, commit {snapshot.name}"
        print(f"note: {where} cannot be reached ({reason}); {note}", file=sys.stderr)
    return paths


def _check_digest(path: Path) -> None:
    """Refuses a damaged file of the client's cache, and removes it: a link to one that is named after its digest.

    The digest is a SHA-256 or, of what the hub keeps in git itself, git's SHA-1. The client compares sizes only.
    """
    if not path.is_symlink():  # a file system without links
        return
    blob = path.parent / os.readlink(path)
    content = blob.read_bytes()
    digest = hashlib.sha256(content)
    if len(blob.name) == 40:
        digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob.name) and digest.hexdigest() != blob.name:
        for damaged in (path, blob):
            damaged.unlink(missing_ok=True)
        raise UserError(f"{path.name} is not what the hub has: its digest is not {blob.name[:8]}...; it was removed")


def _client(part: str = "") -> Any:
    """`huggingface_hub`, or a module in it."""
    try:
        return importlib.import_module(f"huggingface_hub{part}")
    except ImportError:
        raise UserError(
            "needs huggingface_hub, which is not installed: pip install -r requirements-hub.txt, or this package with "
            "its extra `hub`"
        ) from None


def _reason(error: object) -> str:
    """One short line of what a network or a disk said."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return shown(" ".join(str(text).split()), 200)
