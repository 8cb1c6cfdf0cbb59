"""Servers on loopback that real loading code talks to: plain files as torchvision's, and a model hub.

`ModelHub` speaks of the hub's protocol what `huggingface_hub` asks for when it downloads: a repository's files with
their sizes and, of each, its commit, digest and content.
"""

import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Answer(NamedTuple):
    status: int = 404
    body: bytes = b""
    headers: dict[str, str] = {}  # noqa: RUF012 - nobody changes it
    cut: int | None = None  # bytes after which the connection is closed


class Server:
    """Runs `answer(path) -> Answer` in threads; `asked` has every request, such as "GET /a.pth"."""

    def __init__(self, answer):
        self.asked = asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(f"{self.command} {self.path}")
                found = answer(self.path)
                self.send_response(found.status)
                for name, value in {"Content-Length": str(len(found.body)), **found.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(found.body[: found.cut])
                if found.cut is not None:
                    self.close_connection = True

            do_HEAD = do_GET

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(poll_interval=0.02))
        self._thread.start()

    def stop(self):
        """Nobody listens there from now on."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextlib.contextmanager
def serve(answer):
    server = Server(answer)
    try:
        yield server
    finally:
        server.stop()


class ModelHub:
    """Answers for `repositories`: "owner/name" -> {file: content}. Files above 1 kB have digests as of git-LFS."""

    def __init__(self, repositories, gated=()):
        self.repositories, self.gated = repositories, gated

    def __call__(self, path):
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/([\w.-]+))?(?:\?.*)?", path):
            return self._checked(match[1], match[2], lambda files: Answer(200, self._description(match[1], files)))
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)", path):
            return self._checked(match[1], match[2], lambda files: self._file(match[1], files.get(match[3])))
        return Answer()

    def _checked(self, name, revision, answer):
        if name not in self.repositories:
            return _error(401, "RepoNotFound")
        if revision not in (None, "main", COMMIT):
            return _error(404, "RevisionNotFound")
        return answer(self.repositories[name])

    def _description(self, name, files):
        siblings = [{"rfilename": file, "size": getattr(body, "size", len(body))} for file, body in files.items()]
        return json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()

    def _file(self, name, body):
        if name in self.gated:
            return _error(403, "GatedRepo")
        if body is None:
            return _error(404, "EntryNotFound")
        git = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        digest = hashlib.sha256(body).hexdigest() if len(body) > 1000 else git
        return Answer(200, body, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT})


def _error(status, code):
    return Answer(status, b"{}", {"X-Error-Code": code})


def use_hub(monkeypatch, url, cache):
    """As HF_ENDPOINT and HF_HOME do, which the client reads when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
