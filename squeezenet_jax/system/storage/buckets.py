"""Buckets of Google Cloud Storage and Amazon S3: four operations on objects, of which a write may have a condition.

Each store's own client does the work (google-cloud-storage, boto3: extras, imported when a bucket is used); how often
and how long to try again is decided here, for both alike.
"""

import errno
import functools
import importlib
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from squeezenet_jax.system.errors import TryAgain, UserError

PATIENCE = 180.0  # seconds of a network that fails for which operations are tried again
TIMEOUT = 20.0  # seconds without a byte
ABSENT = "absent"  # the version of an object that is not there
CHUNK = 1 << 20
EXTRAS = {"gs": ("google.cloud.storage", "google-cloud-storage", "gcs"), "s3": ("boto3", "boto3", "s3")}
PASSING = (408, 409, 425, 429)  # HTTP statuses that are worth another try, beside 500 and above
OF_THE_DISK = (errno.ENOENT, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EISDIR, errno.ENOTDIR)

T = TypeVar("T")


class Conflict(Exception):
    """A write's condition did not hold."""


class Entry(NamedTuple):
    version: str
    size: int  # bytes
    updated: float  # seconds since 1970, by the store's clock


class Answer(NamedTuple):
    """What a store said in place of doing something."""

    status: int | None  # HTTP; None: nothing, for the network failed
    reason: str


class Bucket:
    """One bucket. Keys are without a leading slash.

    Every operation raises `TryAgain` where the store cannot be reached for `PATIENCE` seconds, and `UserError` where it
    refuses: no such bucket, no credentials, no permission.
    """

    scheme: str
    failures: tuple[type[Exception], ...]  # what the client raises

    def __init__(self, name: str) -> None:
        self.name = name
        self._failing: tuple[float, float] | None = None  # when the failures since the last success began, and ended

    def entries(self, prefix: str) -> dict[str, Entry]:
        """The objects whose keys begin with `prefix`."""
        return self._patiently(prefix, lambda: dict(self._entries(prefix)))

    def read(self, key: str) -> tuple[bytes, str]:
        """(content, version). `FileNotFoundError` where there is no such object."""
        return self._patiently(key, lambda: self._read(key))

    def write(self, key: str, content: bytes, expected: str | None = None) -> str:
        """Replaces an object in one step and returns its new version.

        `expected`: only if its version is still this one. `Conflict` where it is not; that may also be because an
        earlier try of the same call had succeeded, and only its answer was lost.
        """
        return self._patiently(key, lambda: self._write(key, content, expected))

    def delete(self, key: str) -> None:
        """Removes an object, if it is there."""
        try:
            self._patiently(key, lambda: self._delete(key))
        except FileNotFoundError:
            return

    def download(self, key: str, path: Path) -> None:
        """An object's content as a file, which may be larger than the memory."""
        self._patiently(key, lambda: self._download(key, path))

    def address(self, key: str) -> str:
        return f"{self.scheme}://{self.name}/{key}"

    def _patiently(self, key: str, action: Callable[[], T]) -> T:
        began, noted = time.monotonic(), False  # the operation; an outage began with whichever met it first
        for pause in itertools.chain((0.25, 0.5, 1.0, 2.0, 4.0), itertools.repeat(8.0)):
            try:
                result = action()
                self._failing = None
                return result
            except self.failures as error:
                if isinstance(error, OSError) and error.errno in OF_THE_DISK:
                    raise
                answer = self._answer(error)
            if answer.status is not None and answer.status not in PASSING and answer.status < 500:
                self._failing = None  # it was reached
                self._refuse(key, answer)
            lasted = self._failing_for()
            if lasted + pause > PATIENCE:
                raise TryAgain(
                    f"{self.address(key)}: cannot be reached for {lasted:.0f} s ({answer.reason}); "
                    "the same command continues once it can"
                )
            if not noted and time.monotonic() - began > 2:
                noted = True
                print(f"note: {self.address(key)}: {answer.reason}; trying again", file=sys.stderr, flush=True)
            time.sleep(pause * random.uniform(0.5, 1.0))  # not all processes of a pod at the same moment
        raise AssertionError("unreachable")

    def _failing_for(self) -> float:
        """Seconds for which the store has not been reached, this failure included: who comes late waits no longer."""
        now = time.monotonic()
        since, latest = self._failing or (now, now)
        self._failing = (since if now - latest < PATIENCE else now, now)
        return now - self._failing[0]

    def _refuse(self, key: str, answer: Answer) -> NoReturn:
        if answer.status == 412:
            raise Conflict(self.address(key))
        if answer.status == 404 and "bucket" not in answer.reason.lower():
            raise FileNotFoundError(errno.ENOENT, "no such object", self.address(key))
        if answer.status == 404:
            raise UserError(f"{self.scheme}://{self.name}: there is no such bucket")
        raise UserError(f"{self.address(key)}: the store refuses ({answer.reason})")

    def _answer(self, error: Exception) -> Answer:
        raise NotImplementedError

    def _entries(self, prefix: str) -> Iterator[tuple[str, Entry]]:
        raise NotImplementedError

    def _read(self, key: str) -> tuple[bytes, str]:
        raise NotImplementedError

    def _write(self, key: str, content: bytes, expected: str | None) -> str:
        raise NotImplementedError

    def _delete(self, key: str) -> None:
        raise NotImplementedError

    def _download(self, key: str, path: Path) -> None:
        raise NotImplementedError


class GoogleBucket(Bucket):
    """Versions are generations. STORAGE_EMULATOR_HOST names another server."""

    scheme = "gs"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        storage = _client("gs")
        api, auth = (importlib.import_module(f"google.{part}.exceptions") for part in ("api_core", "auth"))
        self._errors, self._auth = api, auth
        resumable = importlib.import_module("google.resumable_media")
        self._corrupt = resumable.DataCorruption  # what arrived has another checksum, as where a connection was cut
        broken = (resumable.InvalidResponse, self._corrupt)
        self.failures = (api.GoogleAPIError, auth.GoogleAuthError, *broken, OSError)
        try:
            self._client = storage.Client()
        except (auth.GoogleAuthError, OSError) as error:
            raise UserError(f"gs://{name}: no credentials ({_line(error)})") from None
        self._bucket = self._client.bucket(name)
        self._options: dict[str, Any] = {"timeout": TIMEOUT, "retry": None}

    def _answer(self, error: Exception) -> Answer:
        if isinstance(error, self._auth.DefaultCredentialsError):
            return Answer(401, _line(error))
        if isinstance(error, self._corrupt):
            return Answer(None, "not all arrived, or not as it was sent")
        code = getattr(error, "code", None)
        if code is None and (response := getattr(error, "response", None)) is not None:
            code = response.status_code
        if code == 404:  # of an object or of the bucket: the message says so only sometimes
            try:
                there = self._bucket.exists(**self._options)
            except self.failures as failed:
                return Answer(None, _line(failed))
            return Answer(404, "no object" if there else "no bucket")
        return Answer(int(code) if isinstance(code, int) else None, _line(error))

    def _entries(self, prefix: str) -> Iterator[tuple[str, Entry]]:
        for blob in self._client.list_blobs(self._bucket, prefix=prefix, **self._options):
            yield blob.name, Entry(str(blob.generation), blob.size, blob.updated.timestamp())

    def _read(self, key: str) -> tuple[bytes, str]:
        blob = self._bucket.get_blob(key, **self._options)
        if blob is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", self.address(key))
        generation = blob.generation
        try:
            return blob.download_as_bytes(if_generation_match=generation, **self._options), str(generation)
        except self._errors.PreconditionFailed:  # replaced in between
            return self._read(key)

    def _write(self, key: str, content: bytes, expected: str | None) -> str:
        blob = self._bucket.blob(key)
        generation = None if expected is None else 0 if expected == ABSENT else int(expected)
        kind = "application/octet-stream"
        blob.upload_from_string(content, kind, if_generation_match=generation, checksum="crc32c", **self._options)
        return str(blob.generation)

    def _delete(self, key: str) -> None:
        self._bucket.blob(key).delete(**self._options)

    def _download(self, key: str, path: Path) -> None:
        self._bucket.blob(key).download_to_filename(str(path), **self._options)


class S3Bucket(Bucket):
    """Versions are ETags. AWS_ENDPOINT_URL_S3 names another server."""

    scheme = "s3"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        boto3 = _client("s3")
        config = importlib.import_module("botocore.config").Config(
            connect_timeout=TIMEOUT, read_timeout=TIMEOUT, retries={"total_max_attempts": 1}
        )
        errors = importlib.import_module("botocore.exceptions")
        self._errors = errors
        self.failures = (errors.BotoCoreError, errors.ClientError, OSError)
        try:
            self._client = boto3.client("s3", config=config)
        except (errors.BotoCoreError, ValueError) as error:
            raise UserError(f"s3://{name}: {_line(error)}") from None

    def _answer(self, error: Exception) -> Answer:
        if isinstance(error, self._errors.ClientError):
            response: Any = error.response
            status, code = response["ResponseMetadata"]["HTTPStatusCode"], response["Error"].get("Code", "")
            return Answer(status, f"{code}: {_line(response['Error'].get('Message') or error)}")
        network = (self._errors.HTTPClientError, self._errors.ResponseStreamingError, OSError)
        return Answer(None if isinstance(error, network) else 400, _line(error))

    def _entries(self, prefix: str) -> Iterator[tuple[str, Entry]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        for page in pages:
            for found in page.get("Contents", ()):
                yield found["Key"], Entry(found["ETag"], found["Size"], found["LastModified"].timestamp())

    def _read(self, key: str) -> tuple[bytes, str]:
        found = self._client.get_object(Bucket=self.name, Key=key)
        return found["Body"].read(), str(found["ETag"])

    def _write(self, key: str, content: bytes, expected: str | None) -> str:
        condition = {} if expected is None else {"IfNoneMatch": "*"} if expected == ABSENT else {"IfMatch": expected}
        return str(self._client.put_object(Bucket=self.name, Key=key, Body=content, **condition)["ETag"])

    def _delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self.name, Key=key)

    def _download(self, key: str, path: Path) -> None:
        body = self._client.get_object(Bucket=self.name, Key=key)["Body"]
        with path.open("wb") as file:
            for chunk in body.iter_chunks(CHUNK):
                file.write(chunk)


@functools.cache
def connect(scheme: str, name: str) -> Bucket:
    """The bucket `scheme://name`; `UserError` where its client is not installed or finds no credentials."""
    return {"gs": GoogleBucket, "s3": S3Bucket}[scheme](name)


def check_installed(scheme: str, before: str) -> None:
    """Raises `UserError`, which begins with `before`, where a scheme's client is not installed."""
    try:
        _client(scheme)
    except UserError as error:
        raise UserError(f"{before}{error}") from None


def _client(scheme: str) -> Any:
    module, package, extra = EXTRAS[scheme]
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"{scheme}:// needs {package}, which is not installed: pip install -r requirements-{extra}.txt, or this "
            f"package with its extra `{extra}`"
        ) from None


def _line(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
