"""Output that survives where it goes: a pipe that closes, an encoding without ±, a name that is no text."""

import codecs
import contextlib
import os
import select
import sys
from collections.abc import Callable
from typing import IO, Any

from squeezenet_jax.system import storage

PIPE_COLUMNS = 200  # a file or another program has no width, and nothing should be cut for it
# What reports print, for encodings that do not have it.
PLAIN = {"±": "+/-", "−": "-", "–": "-", "Δ": "delta", "†": "*", "‡": "**", "×": "x", "→": "->", "…": "..."}


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or str(codecs.backslashreplace_errors(_only(error, c))[0]) for c in missing), error.end


def _only(error: UnicodeEncodeError, character: str) -> UnicodeEncodeError:
    return UnicodeEncodeError(error.encoding, character, 0, 1, error.reason)


codecs.register_error("squeezenet_jax.plain", _plain)


def prepare_output() -> None:
    """Lets stdout and stderr print whatever there is: what their encoding lacks, or is no text, in another spelling."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a test or a notebook has put something else in their place
            stream.reconfigure(errors="squeezenet_jax.plain")


def columns(stream: IO[str]) -> int | None:
    """How wide rich should think this stream is; None: as wide as the terminal that it is."""
    return None if stream.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS


class Pipe:
    """stdout whose reader may leave (`| head -1`): `on_closed` is called once; what is printed then goes nowhere."""

    def __init__(self, stream: IO[str], on_closed: Callable[[], None]) -> None:
        self._stream, self._on_closed = stream, on_closed

    def write(self, text: str) -> int:
        return self._try(lambda: self._stream.write(storage.named(text))) or len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except BrokenPipeError:
            discard(self._stream)
            self._on_closed()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def reader_left(stream: IO[str]) -> bool:
    """Whether the reader of a pipe has closed it, also while nothing is written."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no poll on this system, or no file at all
        return False


def say(text: str) -> None:
    """The last words, on stderr; nothing where nobody reads it any more."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
    discard_unread()


def discard_unread() -> list[IO[str]]:
    """Those of stdout and stderr whose reader left; Python's exit would fail in flushing them."""
    unread = [stream for stream in (sys.stdout, sys.stderr) if reader_left(stream)]
    for stream in unread:
        discard(stream)
    return unread


def discard(stream: IO[str]) -> None:
    """Sends what is, or will be, written to a stream with a closed reader nowhere; Python flushes it at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
