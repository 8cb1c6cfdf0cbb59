"""A lease: an object in a bucket that says which process writes the folder around it, and is renewed while it does.

Every write of it has the condition that nobody else has written it since, so of two that want it one has it. Whoever
finds one waits until it is renewed (somebody is there) or has not been for `EXPIRY` seconds of his own clock; clocks of
two machines are never compared. Every object of the folder is written with the condition that it is as its writer
knows it: a process that was stopped for so long that somebody else has the lease, even in the middle of a write,
replaces nothing that the other wrote. Standard library only. Read next: `buckets.py`.
"""

import contextlib
import json
import os
import platform
import posixpath
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from squeezenet_jax.system.errors import TryAgain, UserError
from squeezenet_jax.system.storage.buckets import ABSENT, Bucket, Conflict

EXPIRY = 60.0  # seconds
RENEWAL = 15.0
LOOKS = 2.0  # seconds between two looks at somebody else's

_held: dict[Path, "Lease"] = {}


class Lease:
    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._key = bucket, key
        self._token, self._version = uuid.uuid4().hex, ABSENT
        self._renewed = 0.0
        self._versions: dict[str, str] = {}  # of the folder's objects, as this process knows them
        self._mutex, self._ended = threading.Lock(), threading.Event()
        self._lost: TryAgain | None = None

    def acquire(self) -> str | None:
        """None where it is this process's now; else who has it."""
        content, version = self._read()
        if not _is_free(content):
            holder, seen, began = str(content.get("holder") or "another process"), version, _clock()
            print(
                f"note: {self._bucket.address(self._key)}: held by {holder}; looking whether it is still there, for at "
                f"most {EXPIRY:.0f} s",
                file=sys.stderr,
                flush=True,
            )
            while not _is_free(content) and _clock() - began < EXPIRY:
                time.sleep(LOOKS)
                content, version = self._read()
                if version != seen and not _is_free(content):
                    return str(content.get("holder") or "another process")
        self._version = version
        try:
            self._write({"holder": f"{platform.node()}, process {os.getpid()}", **_this_process()})
        except Conflict:
            content, _ = self._read()
            if content.get("token") != self._token:
                return str(content.get("holder") or "another process")
            self._adopt()
        folder = f"{posixpath.dirname(self._key)}/"
        self._versions = {key: entry.version for key, entry in self._bucket.entries(folder).items()}
        threading.Thread(target=self._keep, daemon=True, name="lease").start()
        return None

    def check(self) -> None:
        """Raises `TryAgain` where somebody else has it by now."""
        with self._mutex:
            if self._lost:
                raise self._lost
            if _clock() - self._renewed > EXPIRY / 2:
                self._renew()

    def write(self, key: str, content: bytes) -> None:
        """Replaces an object of the folder. Raises `TryAgain`, changing nothing, where somebody else has the lease."""
        self.check()
        while True:
            try:
                self._versions[key] = self._bucket.write(key, content, expected=self._versions.get(key, ABSENT))
                return
            except (Conflict, FileNotFoundError):  # who leads S3 to replace what is not there is told the latter
                found, version = self._content(key)
                with self._mutex:
                    self._renew()  # after the look: whatever another holder writes is later, and meets the condition
                self._versions[key] = version
                if found == content:  # an earlier try had succeeded, and its answer was lost
                    return

    def delete(self, key: str) -> None:
        """Removes an object of the folder, if it is there. Raises `TryAgain` where somebody else has the lease."""
        self.check()
        self._bucket.delete(key)
        self._versions.pop(key, None)

    def _content(self, key: str) -> tuple[bytes | None, str]:
        try:
            return self._bucket.read(key)
        except FileNotFoundError:
            return None, ABSENT

    def release(self) -> None:
        self._ended.set()
        with self._mutex:
            if self._lost is None:
                with contextlib.suppress(Conflict):
                    self._write({"holder": ""})

    def _keep(self) -> None:
        while not self._ended.wait(RENEWAL):
            with self._mutex, contextlib.suppress(TryAgain, UserError):  # who writes next is told
                if not self._ended.is_set():
                    self._renew()

    def _renew(self) -> None:
        try:
            self._write({"holder": f"{platform.node()}, process {os.getpid()}", **_this_process()})
        except Conflict:
            content, _ = self._read()
            if content.get("token") == self._token:  # a write of ours had succeeded, and its answer was lost
                self._adopt()
                return
            holder = content.get("holder") or "another process"
            self._lost = TryAgain(
                f"{self._bucket.address(self._key)}: the lease of this process ended and {holder} has it now; "
                "what was saved before stays"
            )
            raise self._lost from None

    def _adopt(self) -> None:
        _, self._version = self._read()
        self._renewed = _clock()

    def _read(self) -> tuple[dict[str, Any], str]:
        content, version = self._content(self._key)
        try:
            found = json.loads(content or b"{}")
        except ValueError:
            found = {}
        return found if isinstance(found, dict) else {}, version

    def _write(self, content: dict[str, Any]) -> None:
        began = _clock()  # before the write: the lease is not longer than others believe
        # A new text each time, for S3's ETag is one of the content.
        text = json.dumps({**content, "token": self._token, "written": uuid.uuid4().hex})
        self._version = self._bucket.write(self._key, text.encode(), expected=self._version)
        self._renewed = began


@contextlib.contextmanager
def held(bucket: Bucket, key: str, folder: Path) -> Iterator[str | None]:
    """Holds the lease `key` for the copy at `folder`; yields None, or who has it already."""
    lease = Lease(bucket, key)
    if holder := lease.acquire():
        yield holder
        return
    _held[folder] = lease
    try:
        yield None
    finally:
        with contextlib.suppress(TryAgain, UserError):  # then it ends by itself
            lease.release()
        del _held[folder]


def over(path: Path) -> Lease | None:
    """The lease that this process holds, or held, of the folder that `path` lies in."""
    return next((lease for folder, lease in list(_held.items()) if path.is_relative_to(folder)), None)


def is_held(bucket: Bucket, key: str) -> bool:
    """Whether the lease seems to be held: it was renewed lately by the store's clock, as this machine's tells it."""
    entry = bucket.entries(key).get(key)
    if entry is None or time.time() - entry.updated > 2 * EXPIRY:
        return False
    return not _is_free(Lease(bucket, key)._read()[0])


def _is_free(content: dict[str, Any]) -> bool:
    """Nobody has it, or a process of this machine that is gone."""
    if not content.get("holder"):
        return True
    ours = _this_process()
    if any(not ours[name] or content.get(name) != ours[name] for name in ("host", "boot", "namespace")):
        return False
    try:
        os.kill(int(content["process"]), 0)
    except (ProcessLookupError, KeyError, ValueError, TypeError, OverflowError):
        return True
    except OSError:
        return False
    return int(content["process"]) == os.getpid()  # which has released its own


def _this_process() -> dict[str, Any]:
    """Who this is; process numbers count only where host, boot and namespace (of a container) are the same."""
    boot = namespace = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return {"host": platform.node(), "boot": boot, "namespace": namespace, "process": os.getpid()}


def _clock() -> float:
    """Seconds, also those in which the machine slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
