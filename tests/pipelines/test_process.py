"""One command in a process group of its own."""

import os
import sys
from pathlib import Path

import pytest

from pipelines.process import describe_exit, run_command

MUCH = 300_000  # more than a pipe holds


def python(*code: str) -> list[str]:
    return [sys.executable, "-c", "\n".join(code)]


@pytest.fixture
def run(tmp_path):
    def call(command, log=None, show=lambda line: None, **variables) -> int:
        environment = {"PATH": os.environ["PATH"], **variables}
        return run_command(command, environment=environment, log=log or tmp_path / "log", show=show)

    return call


def test_both_streams_are_logged_and_shown_line_by_line(run, tmp_path):
    shown: list[str] = []
    program = python("import sys", "print('out', flush=True)", "print('err', file=sys.stderr)", "print('é', end='')")
    assert run(program, show=shown.append, PYTHONIOENCODING="utf-8") == 0
    assert (tmp_path / "log").read_text() == "out\nerr\né" and shown == ["out", "err", "é"]


def test_bytes_that_are_no_text_don_t_stop_it(run, tmp_path):
    assert run(python("import sys; sys.stdout.buffer.write(b'a\\xff\\n')")) == 0
    assert (tmp_path / "log").read_text() == "a\N{REPLACEMENT CHARACTER}\n"


def test_environment_is_the_given_one_alone(run, tmp_path, monkeypatch):
    monkeypatch.setenv("OURS", "1")
    assert (
        run(python("import os, sys; sys.exit('OURS' in os.environ or os.environ['THEIRS'] != 'a b')"), THEIRS="a b")
        == 0
    )


def test_program_is_looked_up_in_the_given_path(run, tmp_path):
    program = tmp_path / "ava"
    program.write_text("#!/bin/sh\nexit 7\n")
    program.chmod(0o755)
    assert run(["ava"], PATH=str(tmp_path)) == 7
    with pytest.raises(FileNotFoundError):
        run(["ava"], PATH="/nowhere")


def test_arguments_never_meet_a_shell(run, tmp_path):
    assert run([*python("import sys", "print(sys.argv[1])"), "$HOME; `id` 'x' \"y\""]) == 0
    assert (tmp_path / "log").read_text() == "$HOME; `id` 'x' \"y\"\n"


def test_standard_input_is_empty(run):
    assert run(python("import sys; sys.exit(len(sys.stdin.read()))")) == 0


def test_full_disk_under_the_log_does_not_hang_the_command(run):
    assert run(python(f"for _ in range({MUCH // 50}): print('x' * 50)"), log=Path("/dev/full")) == 0


def test_terminal_that_went_away_does_not_hang_the_command(run, tmp_path):
    def show(line):
        raise BrokenPipeError

    assert run(python(f"for _ in range({MUCH // 50}): print('x' * 50)"), show=show) == 0
    assert (tmp_path / "log").stat().st_size >= MUCH


@pytest.mark.parametrize(("number", "words"), [(9, "SIGKILL (out of memory?)"), (15, "SIGTERM"), (11, "SIGSEGV")])
def test_death_by_signal_is_told_from_an_exit_code(run, number, words):
    code = run(python(f"import os; os.kill(os.getpid(), {number})"))
    assert code == -number and describe_exit(code) == words


def test_exit_code_is_said_as_a_number():
    assert describe_exit(3) == "exit code 3" and describe_exit(-99) == "signal 99"
