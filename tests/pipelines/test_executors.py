"""One command on an executor: a process of this machine, or a container. What holds for one holds for the other."""

import os
import time
from pathlib import Path

import pytest

from pipelines.docker_executor import PIECE_BYTES, DockerExecutor, whole_lines
from pipelines.executor import Ending, split_lines, supervise
from pipelines.host_executor import HostExecutor
from tests.pipelines.conftest import EXECUTORS

MUCH = 300_000  # more than a pipe holds


def python(*code: str) -> list[str]:
    return ["python3", "-c", "\n".join(code)]


@pytest.fixture
def run(request, tmp_path):
    """Run a command on the executor that the test names; gives its Ending."""
    if request.param == "docker":
        image = request.getfixturevalue("base_image")
        executor = DockerExecutor({}, writable=[tmp_path], readable=[])
    else:
        image, executor = "", HostExecutor({"PATH": os.environ["PATH"]})

    def call(command, log=None, show=lambda line: None, timeout=None, **variables) -> Ending:
        name = f"test-{time.monotonic_ns()}"
        task = executor.start(command, image=image, name=name, variables=variables)
        return supervise(task, log=log or tmp_path / "log", show=show, timeout=timeout)

    return call


on_both_executors = pytest.mark.parametrize("run", EXECUTORS, indirect=True)


@on_both_executors
def test_both_streams_are_logged_and_shown_line_by_line(run, tmp_path):
    shown: list[str] = []
    program = python("import sys", "print('out', flush=True)", "print('err', file=sys.stderr)", "print('é', end='')")
    assert run(program, show=shown.append, PYTHONIOENCODING="utf-8").succeeded
    assert sorted((tmp_path / "log").read_text().split()) == sorted(shown) == ["err", "out", "é"]
    assert shown.index("out") < shown.index("é")


@on_both_executors
def test_secret_that_the_command_prints_is_neither_logged_nor_shown(run, tmp_path):
    shown: list[str] = []
    program = python("import sys", "sys.stdout.buffer.write(b'\\xff https://ava:hun/ter2@host.example/x\\n')")
    assert run(program, show=shown.append).succeeded
    # Docker's own log holds text only.
    assert (tmp_path / "log").read_bytes() in [
        first + b" https://***@host.example/x\n" for first in (b"\xff", b"\xef\xbf\xbd")
    ]
    assert shown == ["\ufffd https://***@host.example/x"]


@on_both_executors
def test_lines_come_while_the_command_runs(run):
    times: list[float] = []
    run(
        python("import time", "print(1, flush=True)", "time.sleep(1.5)", "print(2)"),
        show=lambda _: times.append(time.monotonic()),
    )
    assert times[1] - times[0] > 1


@on_both_executors
def test_bytes_that_are_no_text_don_t_stop_it(run, tmp_path):
    shown: list[str] = []
    assert run(python("import sys; sys.stdout.buffer.write(b'a\\xff\\n')"), show=shown.append).succeeded
    assert (tmp_path / "log").read_text(errors="replace") == "a\N{REPLACEMENT CHARACTER}\n"
    assert shown == ["a\N{REPLACEMENT CHARACTER}"]


@on_both_executors
def test_environment_is_the_given_one_alone(run, monkeypatch):
    monkeypatch.setenv("OURS", "1")
    program = python("import os, sys; sys.exit('OURS' in os.environ or os.environ['THEIRS'] != 'a b')")
    assert run(program, THEIRS="a b").code == 0


@on_both_executors
def test_arguments_never_meet_a_shell(run, tmp_path):
    assert run([*python("import sys", "print(sys.argv[1])"), "$HOME; `id` 'x' \"y\""]).succeeded
    assert (tmp_path / "log").read_text() == "$HOME; `id` 'x' \"y\"\n"


@on_both_executors
def test_standard_input_is_empty(run):
    assert run(python("import sys; sys.exit(len(sys.stdin.read()))")).code == 0


@on_both_executors
def test_full_disk_under_the_log_does_not_hang_the_command(run):
    assert run(python(f"for _ in range({MUCH // 50}): print('x' * 50)"), log=Path("/dev/full")).succeeded


@on_both_executors
def test_terminal_that_went_away_does_not_hang_the_command(run, tmp_path):
    def show(line):
        raise BrokenPipeError

    assert run(python(f"for _ in range({MUCH // 50}): print('x' * 50)"), show=show).succeeded
    assert (tmp_path / "log").stat().st_size >= MUCH


@on_both_executors
@pytest.mark.parametrize(
    ("number", "words"), [(9, "SIGKILL (out of memory?)"), (15, "SIGTERM"), (11, "SIGSEGV"), (6, "SIGABRT")]
)
def test_death_by_signal_is_told_from_an_exit_code(run, number, words):
    ending = run(python(f"import os; os.kill(os.getpid(), {number})"))
    assert not ending.succeeded and str(ending) == words


@on_both_executors
@pytest.mark.parametrize("code", [1, 2, 77])
def test_exit_code_is_read(run, code):
    ending = run(python(f"raise SystemExit({code})"))
    assert not ending.succeeded and str(ending) == f"exit code {code}"


@on_both_executors
def test_command_that_takes_too_long_is_asked_to_end(run, tmp_path):
    # A shell, which has set its trap long before the time is up.
    ending = run(["sh", "-c", "trap 'echo ending; exit 0' TERM; sleep 600 & wait"], timeout=2.5)
    assert not ending.succeeded and str(ending) == "timed out after 2.5 s"
    assert (tmp_path / "log").read_text() == "ending\n"


@pytest.mark.slow
@on_both_executors
def test_command_that_will_not_end_is_killed(run, monkeypatch):
    monkeypatch.setattr("pipelines.executor.end.__defaults__", (1.0,))
    ending = run(["sh", "-c", "trap '' TERM; sleep 600"], timeout=2.5)
    assert str(ending) == "timed out after 2.5 s" and ending.code in (-9, 137)


def test_how_an_ending_is_said():
    assert str(Ending(code=3)) == "exit code 3" and str(Ending(code=-99)) == "signal 99"
    assert str(Ending(code=137, out_of_memory=True)) == "SIGKILL (out of memory)"
    assert str(Ending(code=143)) == "SIGTERM" and str(Ending(code=255)) == "exit code 255"
    assert not Ending(code=0, timeout=1).succeeded and Ending(code=0).succeeded


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_lines_are_put_together_from_pieces_cut_anywhere(size):
    text = "a\n\nbé\nend".encode()
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert list(split_lines(pieces)) == [b"a\n", b"\n", "bé\n".encode(), b"end"]


def test_last_line_of_one_stream_is_not_glued_to_the_next_of_the_other():
    long = b"x" * PIECE_BYTES
    frames = [b"out\n", b"no end", b"err\n", long, b"y\n", long]
    assert list(whole_lines(frames)) == [b"out\n", b"no end\n", b"err\n", long + b"y\n", long]
