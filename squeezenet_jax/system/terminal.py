"""Output that survives where it goes: a pipe that closes, an encoding without ±, a name that is no text, Ctrl-C."""

import codecs
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import IO, Any

from squeezenet_jax.system import storage
from squeezenet_jax.system.errors import TryAgain, UserError

WRONG_INPUT, TEMPORARY, INTERRUPTED = 2, 75, 130  # exit codes; the last as a shell has it for Ctrl-C
RETRY_SECONDS = 0.05  # until a Ctrl-C that came at a wrong moment is tried again
IMPORT_SECONDS = 3  # that a Ctrl-C waits for modules to be imported; an experiment is one, and may never end
PIPE_COLUMNS = 200  # a file or another program has no width, and nothing should be cut for it
# What jax says, as it is imported, of a JAX_... variable whose value it does not know.
JAX_VARIABLE = re.compile(r"for JAX flag jax_|for environment '?JAX_")
# What reports print, for encodings that do not have it.
PLAIN = {"±": "+/-", "−": "-", "–": "-", "Δ": "delta", "†": "*", "‡": "**", "×": "x", "→": "->", "…": "..."}


_interrupted_at: float | None = None


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


def discard(stream: IO[str]) -> None:
    """Sends what is, or will be, written to a stream with a closed reader nowhere; Python flushes it at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def leave_on_ctrl_c() -> None:
    """Ctrl-C ends the program at once, in one line, until `exit_code` takes it over.

    For while modules are imported: there is nothing to clean up yet, and some of them would show a traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not where a shell has it ignored
        signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _raise_on_ctrl_c() -> None:
    """Ctrl-C raises `KeyboardInterrupt`, but not where that would be lost or do harm.

    Python raises it wherever the program happens to be. In a finalizer it is printed and forgotten; while a module is
    imported it can leave a lock behind, for which every other thread then waits, and modules in C++ abort.
    """
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    sys.unraisablehook = _interrupt_again


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted_at
    now = time.monotonic()
    _interrupted_at = _interrupted_at or now
    if _importing(frame) and now < _interrupted_at + IMPORT_SECONDS:
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _interrupt_again(unraisable: Any) -> None:
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
    else:
        sys.__unraisablehook__(unraisable)


def exit_code(main: Callable[[], int]) -> int:
    """What `main` returns; one line on stderr and a code for whatever a person did or can mend."""
    if signal.getsignal(signal.SIGINT) is not _leave:
        return _exit_code(main)
    _raise_on_ctrl_c()
    try:
        return _exit_code(main)
    finally:  # Python is about to take itself apart, where nothing could catch what is raised
        signal.signal(signal.SIGINT, _leave)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _exit_code(main: Callable[[], int]) -> int:
    try:
        code = main()
        storage.drain()
        sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
        return 0  # the reader has what it wanted
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        return _refused(str(error))
    except TryAgain as error:
        return _refused(str(error), TEMPORARY)
    except OSError as error:
        return _refused(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except ValueError as error:
        if not JAX_VARIABLE.search(str(error)):
            raise
        return _refused(f"environment: {' '.join(str(error).split())}")
    return code


def _refused(reason: str, code: int = WRONG_INPUT) -> int:
    print(f"error: {storage.named(reason)}", file=sys.stderr)
    return code
