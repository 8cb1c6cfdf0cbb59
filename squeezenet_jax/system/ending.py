"""How a program ends: Ctrl-C and the signals that ask for an end, errors in one line, exit codes."""

import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from squeezenet_jax.system import storage, terminal
from squeezenet_jax.system.errors import TryAgain, UserError

WRONG_INPUT, TEMPORARY = 2, 75  # exit codes
INTERRUPTED, NO_READER = 130, 141  # as a shell has them for Ctrl-C and SIGPIPE
RETRY_SECONDS = 0.05  # until a Ctrl-C that came at a wrong moment is tried again
IMPORT_SECONDS = 3  # that a Ctrl-C waits for modules to be imported, after which it ends the program as it is
# What jax says, as it is imported, of a JAX_... variable whose value it does not know.
JAX_VARIABLE = re.compile(r"for JAX flag jax_|for environment '?JAX_")

_interrupted_at: float | None = None


def leave_on_ctrl_c() -> None:
    """Ctrl-C ends the program at once, in one line, until `exit_code` takes it over.

    For while modules are imported: there is nothing to clean up yet, and some of them would show a traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not where a shell has it ignored
        signal.signal(signal.SIGINT, leave)


def leave(*_: object) -> NoReturn:
    """Ends the program at once, in one line, with nothing cleaned up; also as a signal's handler."""
    try:
        os.write(2, b"interrupted\n")
    finally:  # whoever read that may have been interrupted, too
        os._exit(INTERRUPTED)


def exit_at_once(code: int) -> NoReturn:
    """Ends a program that has done what it could.

    An ordinary exit would wait for threads: of jax, which may crash after an interruption in their middle, and for the
    other ones of several processes, which wait for this one.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a full disk, a reader that left: it is no time to say so
            stream.flush()
    storage.forget()
    os._exit(code)


@contextlib.contextmanager
def _ctrl_c_raises() -> Iterator[None]:
    """Ctrl-C raises `KeyboardInterrupt`, where it ended the program before, but not where that would do harm.

    Python raises it wherever the program happens to be. In a finalizer it is printed and forgotten; while a module is
    imported it can leave a lock behind, for which every other thread then waits, and modules in C++ abort. Nor does it
    raise it while XLA compiles or a driver hangs: there, a second Ctrl-C ends the program.
    """
    if signal.getsignal(signal.SIGINT) is not leave:
        yield
        return
    before = sys.unraisablehook

    def interrupt_again(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
        else:
            before(unraisable)

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_leave_at_the_second, args=(reader,), daemon=True).start()
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    sys.unraisablehook = interrupt_again
    try:
        yield
    finally:  # Python is about to take itself apart, where nothing could catch what is raised
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if signal.getsignal(signal.SIGINT) is _interrupt:  # not what has been put in its place
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        writer.close()
        sys.unraisablehook = before


def _leave_at_the_second(reader: socket.socket) -> None:
    came = 0
    while came < 2 and (numbers := reader.recv(64)):
        came += numbers.count(signal.SIGINT)
    if came >= 2:
        leave()


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted_at
    now = time.monotonic()
    _interrupted_at = _interrupted_at or now
    if _importing(frame):
        if now >= _interrupted_at + IMPORT_SECONDS:
            leave()
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
        return
    _interrupted_at = None
    signal.setitimer(signal.ITIMER_REAL, 0)
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def exit_code(main: Callable[[], int]) -> int:
    """What `main` returns; one line on stderr and a code for whatever a person did or can mend."""
    with _ctrl_c_raises():
        try:
            code = main()
            storage.drain()
            sys.stdout.flush()
        except BrokenPipeError as error:
            unread = terminal.discard_unread()
            if sys.stdout in unread:  # its reader has what it wanted
                return 0
            return NO_READER if unread else _refused(f"{error.filename or 'input or output'}: {error.strerror}")
        except KeyboardInterrupt:
            terminal.say("interrupted")
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
    terminal.say(f"error: {storage.named(reason)}")
    return code


class StopRequest:
    """Turns the signals that end a program into a wish that the training loop looks at after each step.

    Also a reader of stdout that left, which calls `request`. SIGHUP stays ignored where `nohup` has it so. A second
    Ctrl-C kills; a second SIGTERM does not, because schedulers send several before they kill.
    """

    def __init__(self) -> None:
        self._requested = False

    def listen(self) -> None:
        if _waiting_ctrl_c():
            self._requested = True
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._signalled)

    def request(self) -> None:
        self._requested = True

    def _signalled(self, number: int, frame: object) -> None:
        self.request()
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    def requested(self) -> bool:
        if terminal.reader_left(sys.stdout):
            self._requested = True  # and never False again: a signal may come between a look at it and that
        return self._requested


def _waiting_ctrl_c() -> bool:
    """Takes back a Ctrl-C that waits for an import; whether there was one."""
    return signal.setitimer(signal.ITIMER_REAL, 0)[0] > 0
