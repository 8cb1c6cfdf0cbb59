"""Output that goes into pipes that close, encodings that lack characters, and other programs."""

import io
import subprocess
import sys

import pytest

from squeezenet_jax.system import terminal

PRELUDE = "import sys\nfrom squeezenet_jax.system import ending, terminal\nterminal.prepare_output()\n"


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
        "def main():\n    for _ in range(50_000): print('line')\n    return 0\nsys.exit(ending.exit_code(main))"
    )
    assert (code, stderr) == (0, "")


def test_a_pipe_is_wide_and_a_terminal_as_wide_as_it_is(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal.columns(io.StringIO()) == 200
    monkeypatch.setenv("COLUMNS", "40")
    assert terminal.columns(io.StringIO()) is None
