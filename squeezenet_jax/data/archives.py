"""Tar archives as byte ranges: what lies where, without unpacking; and unpacking the compression around a tar."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, cast

from squeezenet_jax.system.errors import UserError

# (offset, size) of a regular file's bytes; "other" is a link to nothing known, a device, or a sparse file
Extent = tuple[int, int] | Literal["folder", "other"]

MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"]\x00\x00": "xz", b"\x28\xb5\x2f\xfd": "zst"}
COPY_BYTES = 1 << 20
TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # change the order of the letters of a line


def compression(path: Path) -> str | None:
    """What the file is compressed with, by its first bytes: the names of files lie more often."""
    with path.open("rb") as file:
        start = file.read(8)
    return next((name for magic, name in MAGIC.items() if start.startswith(magic)), None)


def check(path: Path) -> None:
    """Raises `UserError` if the file does not begin as a tar archive, compressed or not."""
    try:
        with path.open("rb") as raw, _decompressed(raw, compression(path)) as file:
            tarfile.TarInfo.frombuf(_read(path, file, tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except (tarfile.HeaderError, KeyError) as error:
        allowed = "a folder, .tar, .tar.gz, .tar.bz2 or .tar.xz"
        raise UserError(f"{path}: is no tar archive that can be read here; allowed: {allowed}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def unpack(path: Path, out: Path, advance: Callable[[int], None]) -> None:
    """Writes the tar that is inside a compressed one; `advance` hears how many bytes of `path` were read since.

    Raises:
      UserError: `path` is damaged. What cannot be written raises `OSError`.
    """
    with path.open("rb") as raw, _decompressed(raw, compression(path)) as file, out.open("wb") as tar:
        seen = 0
        while block := _read(path, file, COPY_BYTES):
            tar.write(block)
            advance(raw.tell() - seen)
            seen = raw.tell()


def members(path: Path, within: tuple[int, int] | None = None) -> Iterator[tuple[str, Extent]]:
    """(name, extent) of every member; `within` is the extent of a tar inside the tar.

    Raises:
      UserError: damaged, or cut short.
    """
    try:
        with path.open("rb") as file:
            start = within[0] if within else 0
            with tarfile.open(
                fileobj=io.BufferedReader(_Part(file, *within)) if within else file, mode="r:"
            ) as archive:
                extents: dict[str, Extent] = {}  # only for hard links, which name an earlier member
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # it would keep all: a gigabyte for ImageNet
                    extent: Extent = "other"
                    if member.isdir():
                        extent = "folder"
                    elif member.islnk():
                        extent = extents.get(member.linkname, "other")
                    elif member.isreg() and not member.issparse():
                        extent = start + member.offset_data, member.size
                        extents[member.name] = extent
                    yield member.name, extent
                if not _ends_at(archive):
                    raise tarfile.ReadError("no end of the archive, or something behind it")
    except tarfile.TarError as error:
        raise UserError(f"{path}: is damaged or cut short ({error}); get it again") from error


def _ends_at(archive: tarfile.TarFile) -> bool:
    """Whether an archive's end is where reading stopped: tarfile takes a damaged or missing header for the end, too."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return False
    while block and not any(block):
        block = archive.fileobj.read(COPY_BYTES)
    return not block


def printable(text: str) -> str:
    """A name from anywhere, safe to print in one line: no control characters, no broken encoding.

    Bytes that are no UTF-8, which Python keeps as surrogates, become \\xff. Wide and unbreakable spaces stay, and so do
    joiners and the like, which many scripts need; Python calls all of them unprintable.
    """
    try:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # other surrogates
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if _is_shown(c) else c.encode("unicode_escape").decode() for c in text)


def _is_shown(c: str) -> bool:
    return c.isprintable() or (unicodedata.category(c) in ("Zs", "Cf") and c not in TURNING)


class _Part(io.RawIOBase):
    """A range of an open file as a file of its own."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._start, self._size, self._position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._position))
        block = os.pread(self._file.fileno(), wanted, self._start + self._position)
        buffer[: len(block)] = block
        self._position += len(block)
        return len(block)


def _decompressed(raw: IO[bytes], kind: str | None) -> IO[bytes]:
    """Raises `KeyError` for a compression that Python cannot undo."""
    match kind:
        case "gz":
            return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
        case "bz2":
            return bz2.BZ2File(raw)
        case "xz":
            return lzma.LZMAFile(raw)
        case None:
            return raw
    raise KeyError(kind)


def _read(path: Path, file: IO[bytes], size: int) -> bytes:
    try:
        return file.read(size)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: is damaged or cut short ({error}); get it again") from error
