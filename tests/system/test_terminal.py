"""Output that goes into pipes that close, encodings that lack characters, and other programs."""

import io
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from squeezenet_jax.system import terminal
from squeezenet_jax.system.errors import UserError

ROOT = Path(__file__).parents[2]

PRELUDE = "import sys\nfrom squeezenet_jax.system import terminal\nterminal.prepare_output()\n"


def run(script, **environment):
    command = [sys.executable, "-c", PRELUDE + script]
    return subprocess.run(command, capture_output=True, env={"PYTHONPATH": ".", **environment}, timeout=60)


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_what_an_encoding_lacks_is_spelled_out(environment):
    text = "98.81 ± 0.16, −0.09 †, " + chr(0xDCFF) + ".jpg, 猫"
    result = run(f"print({text!a})", **environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout == b"98.81 +/- 0.16, -0.09 *, \\udcff.jpg, \\u732b\n"


def test_a_name_that_is_no_text_is_printed_in_utf_8_too():
    result = run("print('\\udcff.jpg ±')", PYTHONIOENCODING="utf-8")
    assert result.stdout.decode() == "\\udcff.jpg ±\n"


def closing_after_one_line(script):
    command, pipe = [sys.executable, "-c", PRELUDE + script], subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, env={"PYTHONPATH": "."})
    process.stdout.readline()
    process.stdout.close()
    return process.wait(timeout=60), process.stderr.read().decode()


def test_a_reader_that_leaves_is_told_of_once_and_the_program_goes_on():
    code, stderr = closing_after_one_line(
        "told = []\nout = terminal.Pipe(sys.stdout, lambda: told.append(1))\n"
        "for _ in range(50_000): out.write('line\\n')\n"
        "out.flush()\nprint(told, file=sys.stderr)"
    )
    assert (code, stderr) == (0, "[1]\n")


def test_a_command_whose_reader_leaves_ends_quietly():
    code, stderr = closing_after_one_line(
        "def main():\n    for _ in range(50_000): print('line')\n    return 0\nsys.exit(terminal.exit_code(main))"
    )
    assert (code, stderr) == (0, "")


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
    assert terminal.exit_code(raising(error)) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(line)
    assert len(captured.err.splitlines()) == 1


def test_what_nobody_can_mend_is_raised():
    with pytest.raises(RuntimeError, match="a fault of ours"):
        terminal.exit_code(raising(RuntimeError("a fault of ours")))


def test_a_pipe_is_wide_and_a_terminal_as_wide_as_it_is(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal.columns(io.StringIO()) == 200
    monkeypatch.setenv("COLUMNS", "40")
    assert terminal.columns(io.StringIO()) is None


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
        terminal.leave_on_ctrl_c()
        assert terminal.exit_code(lambda: 0) == 0
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


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_is_neither_lost_nor_does_it_break_imports(moment, tmp_path):
    (tmp_path / "interrupts.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    (tmp_path / "endless.py").write_text("import interrupts\nwhile True: pass\n")
    program = (
        "import functools, importlib, signal, sys, time, traceback, types\n"
        "from squeezenet_jax.system import terminal\n"
        "terminal.leave_on_ctrl_c()\n"
        f"def main():\n{textwrap.indent(textwrap.dedent(MOMENTS[moment]).strip(), '    ')}\n"
        "    time.sleep(60)\n"
        "    return 0\n"
        "sys.exit(terminal.exit_code(main))"
    )
    command, environment = [sys.executable, "-c", program], os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")
