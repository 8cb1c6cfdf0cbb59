"""How programs end: by Ctrl-C wherever it comes, and by errors in one line."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from squeezenet_jax.system import ending
from squeezenet_jax.system.errors import UserError

ROOT = Path(__file__).parents[2]
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("seed: wrong"), 2, "error: seed: wrong"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file or directory", "x"), 2, "error: x: No such file or directory"),
    ],
)
def test_what_a_person_can_mend_is_one_line(error, code, line, capsys):
    assert ending.exit_code(raising(error)) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(line)
    assert len(captured.err.splitlines()) == 1


def test_what_nobody_can_mend_is_raised():
    with pytest.raises(RuntimeError, match="a fault of ours"):
        ending.exit_code(raising(RuntimeError("a fault of ours")))


@pytest.mark.parametrize("arguments", [["launch.py", "--config", "experiments/bypass.py"], ["-m", "squeezenet_jax"]])
def test_ctrl_c_while_modules_are_imported_is_one_line(arguments, tmp_path):
    interrupts = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "json.py").write_text(interrupts)  # in place of one that both import early
    command = [sys.executable, *arguments]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_is_left_alone_where_it_is_ignored():
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ending.leave_on_ctrl_c()
        assert ending.exit_code(lambda: 0) == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# Each is main's body, in which Ctrl-C comes.
MOMENTS = {
    "anywhere": "signal.raise_signal(signal.SIGINT)",
    # Python prints and forgets what a finalizer raises.
    "in a finalizer": """
        class Finalized:
            def __del__(self):
                signal.raise_signal(signal.SIGINT)
        Finalized()
    """,
    # Extension modules in C++ end the process where Python code that they call as they are imported raises.
    "while a module is imported": """
        try:
            import interrupts
            finished = "interrupts" in sys.modules
            time.sleep(60)
        except KeyboardInterrupt:
            assert finished
            raise
    """,
    "while a module is imported that never ends": "import endless",
    # The place between taking the lock and the try block that gives it back: an exception there keeps it.
    "as the import system takes its lock": """
        ours = types.SimpleNamespace(**vars(importlib._bootstrap._imp))
        ours.acquire_lock = functools.partial(signal.raise_signal, signal.SIGINT)
        ours.release_lock = lambda: None
        importlib._bootstrap._imp = ours
        try:
            import wave
        except KeyboardInterrupt as error:
            places = [f.filename for f in traceback.extract_tb(error.__traceback__)]
            assert not places[-1].startswith("<frozen importlib"), places
            raise
    """,
}


def run_main(moment, tmp_path, before=""):
    (tmp_path / "interrupts.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    (tmp_path / "endless.py").write_text("import interrupts\nwhile True: pass\n")
    program = (
        f"{before}import functools, importlib, signal, sys, time, traceback, types\n"
        "from squeezenet_jax.system import ending\n"
        "ending.leave_on_ctrl_c()\n"
        f"def main():\n{textwrap.indent(textwrap.dedent(MOMENTS[moment]).strip(), '    ')}\n"
        "    time.sleep(60)\n"
        "    return 0\n"
        "sys.exit(ending.exit_code(main))"
    )
    command, environment = [sys.executable, "-c", program], BUFFERED | {"PYTHONPATH": str(tmp_path)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_is_neither_lost_nor_does_it_break_imports(moment, tmp_path):
    result = run_main(moment, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_after_main_a_signal_is_the_systems_again_and_hooks_are_what_they_were():
    program = (
        "import signal, sys\n"
        "from squeezenet_jax.system import ending\n"
        "sys.unraisablehook = hook = lambda unraisable: print(unraisable.exc_type.__name__)\n"
        "ending.leave_on_ctrl_c()\n"
        "class Finalized:\n    def __del__(self): 1 / 0\n"
        "assert ending.exit_code(lambda: bool(Finalized()) - 1) == 0\n"
        "assert sys.unraisablehook is hook and not ending._waiting_ctrl_c()\n"
        "signal.raise_signal(signal.SIGALRM)\n"
        "signal.raise_signal(signal.SIGINT)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "ZeroDivisionError\n", "")


STOPPING = """
import ctypes, os, signal, sys, threading, time
from squeezenet_jax.system import ending

ready = threading.Event()

def interrupt(times):
    ready.wait()
    for number in range(times):
        if sys.argv[1] == "in C":
            time.sleep(1.0)  # until it is there; and two at once would be one
        os.kill(os.getpid(), signal.SIGINT)
        while sys.argv[1] == "in Python" and signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
            time.sleep(0.01)

def main():
    stop = ending.StopRequest()
    stop.listen()
    threading.Thread(target=interrupt, args=(int(sys.argv[2]),), daemon=True).start()
    if sys.argv[1] == "in C":  # as in a driver, or while XLA compiles: no handler of Python's is called
        mutex = ctypes.create_string_buffer(64)
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
        ready.set()
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
    ready.set()
    while not stop.requested() or sys.argv[2] == "2":
        time.sleep(0.01)
    return 75

ending.leave_on_ctrl_c()
sys.exit(ending.exit_code(main))
"""


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere another mutex is needed")


@pytest.mark.parametrize(
    ("where", "times", "code"),
    [("in Python", 1, 75), ("in Python", 2, -signal.SIGINT), pytest.param("in C", 2, 130, marks=LINUX)],
)
def test_one_ctrl_c_is_a_wish_and_a_second_one_ends_the_program_wherever_it_is(where, times, code):
    command = [sys.executable, "-c", STOPPING, where, str(times)]
    reader, stderr = os.pipe()
    os.close(reader)  # as where `2>&1 | tee` was interrupted, too
    try:
        assert subprocess.run(command, cwd=ROOT, stderr=stderr, timeout=30).returncode == code
    finally:
        os.close(stderr)


@pytest.mark.parametrize("moment", ["anywhere", "while a module is imported that never ends"])
def test_ctrl_c_has_its_code_also_where_nobody_reads_what_is_said(moment, tmp_path):
    result = run_main(moment, tmp_path, "import os\nreader, writer = os.pipe()\nos.close(reader)\nos.dup2(writer, 2)\n")
    assert (result.returncode, result.stderr) == (130, "")


@LINUX
def test_a_second_ctrl_c_ends_a_command_too_that_is_in_c():
    program = STOPPING.replace("stop.listen()", "")
    assert subprocess.run([sys.executable, "-c", program, "in C", "2"], cwd=ROOT, timeout=30).returncode == 130


def test_a_signal_that_comes_while_the_wish_is_asked_for_is_not_lost(monkeypatch):
    stop = ending.StopRequest()
    monkeypatch.setattr(ending.terminal, "reader_left", lambda stream: stop.request())  # as its handler does
    assert stop.requested() and stop.requested()


def test_a_ctrl_c_that_waits_for_an_import_is_not_lost_where_signals_become_a_wish(tmp_path):
    (tmp_path / "listens.py").write_text(
        "import signal\nfrom squeezenet_jax.system import ending\nsignal.raise_signal(signal.SIGINT)\n"
        "stop = ending.StopRequest()\nstop.listen()\n"
    )
    program = (
        "import sys\nfrom squeezenet_jax.system import ending\n"
        "def main():\n    from listens import stop\n    return 75 * stop.requested()\n"
        "ending.leave_on_ctrl_c()\nsys.exit(ending.exit_code(main))\n"
    )
    command, environment = [sys.executable, "-c", program], os.environ | {"PYTHONPATH": str(tmp_path)}
    assert subprocess.run(command, cwd=ROOT, env=environment, timeout=30).returncode == 75


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_a_process_leaves_though_its_output_is_full():
    program = "import sys\nfrom squeezenet_jax.system import ending\nprint('x')\nending.exit_at_once(7)\n"
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", program]
        result = subprocess.run(command, cwd=ROOT, env=BUFFERED, stdout=full, stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (7, b"")


@pytest.mark.parametrize("both", [False, True], ids=["stderr", "both"])
@pytest.mark.parametrize(
    ("main", "code"),
    [
        ("raise UserError('seed: wrong')", 2),
        ("raise TryAgain('gs://b: cannot be reached')", 75),
        ("print('note: x', file=sys.stderr, flush=True)", 141),
        ("print('note: x', flush=True)", 0),
        ("raise BrokenPipeError(32, 'a process is gone')", 2),
    ],
)
def test_who_left_off_reading_stderr_changes_no_code_and_is_not_the_one_who_reads_stdout(main, code, both):
    program = (
        "import sys\nfrom squeezenet_jax.system import ending\n"
        "from squeezenet_jax.system.errors import TryAgain, UserError\n"
        f"def main():\n    print('pending')\n    {main}\n    return 0\nsys.exit(ending.exit_code(main))\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command, stdout = [sys.executable, "-c", program], writer if both else subprocess.PIPE
        result = subprocess.run(command, cwd=ROOT, env=BUFFERED, stdout=stdout, stderr=writer, timeout=30)
    finally:
        os.close(writer)
    enough = both and ("print" in main or "Broken" in main)  # as `2>&1 | head -1` has it
    expected = 141 if "Broken" in main and not both else 0 if enough else code
    assert result.returncode == expected
