"""Stores on loopback: `python tests/store_servers.py gs PORT FOLDER`, or s3, until it is killed.

Google's is gcp-storage-emulator with its objects in FOLDER, so that they survive its own kill. It ignores
ifGenerationMatch, which is added here as the store documents it: 0, there is no such object; else its generation. It
answers one request at a time, so that nothing comes between the look and the write. S3's is moto, in memory.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from http import HTTPStatus

BUCKET = "squeeze-bucket"


def serve_google(port, folder):
    from gcp_storage_emulator import server
    from gcp_storage_emulator.handlers import objects

    def guarded(insert):
        def handler(request, response, store, *args):
            if expected := request.query.get("ifGenerationMatch"):
                name = request.query.get("name", [None])[0]
                if name is None:  # in the metadata: of a multipart upload, or of one in pieces (8 MiB and more)
                    name = request.data.get("meta", request.data)["name"]
                try:
                    found = store.get_file_obj(request.params["bucket_name"], name)["generation"]
                except Exception:  # noqa: BLE001 - whatever it raises for one that is not there
                    found = "0"
                if found != expected[0]:
                    response.status = HTTPStatus.PRECONDITION_FAILED
                    response.json({"error": {"code": 412, "message": "conditionNotMet"}})
                    return None
            return insert(request, response, store, *args)

        return handler

    for _, handlers in server.HANDLERS:
        for method, handler in handlers.items():
            if handler is objects.insert:
                handlers[method] = guarded(handler)
    server.create_server("127.0.0.1", port, data_dir=folder, default_bucket=BUCKET).run()


def serve_s3(port):
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys).create_bucket(Bucket=BUCKET)
    signal.pause()


class Store:
    """A server in a process of its own; `environment` leads a client to it."""

    def __init__(self, scheme, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.scheme, self.folder = scheme, folder
        self.root = f"{scheme}://{BUCKET}"
        url = f"http://127.0.0.1:{self.port}"
        if scheme == "gs":
            self.environment = {"STORAGE_EMULATOR_HOST": url}
        else:
            self.environment = {"AWS_ENDPOINT_URL_S3": url, "AWS_DEFAULT_REGION": "us-east-1"}
            self.environment |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        self.start()

    def start(self):
        command = [sys.executable, __file__, self.scheme, str(self.port), str(self.folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        probe = f"/storage/v1/b/{BUCKET}" if self.scheme == "gs" else f"/{BUCKET}"
        for _ in range(600):
            assert self._process.poll() is None
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{probe}", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the store does not answer")

    @property
    def pid(self):
        return self._process.pid

    def kill(self):
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def reached(scheme, folder):
    """A store that this process's own clients reach."""
    from squeezenet_jax.system.storage import buckets

    store, before = Store(scheme, folder), dict(os.environ)
    os.environ.update(store.environment)
    buckets.connect.cache_clear()
    try:
        yield store
    finally:
        store.kill()
        os.environ.clear()
        os.environ.update(before)
        buckets.connect.cache_clear()


if __name__ == "__main__":
    if sys.argv[1] == "gs":
        os.makedirs(sys.argv[3], exist_ok=True)
        serve_google(int(sys.argv[2]), sys.argv[3])
    else:
        serve_s3(int(sys.argv[2]))
