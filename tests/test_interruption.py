"""Ends that come from outside: signals, and terminals that close."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

GOES_ON = """
import sys, time
from pathlib import Path
from ava_core.interruption import handle_signals, outlive_terminal
from ava_core.runtime import logs
from ava_core.progress import Progress
handle_signals()
outlive_terminal()
logs.configure()
folder = Path(sys.argv[1])
with Progress().task("work", 100) as advance:
    advance(1)
    (folder / "begun").touch()
    while not (folder / "closed").exists():
        time.sleep(0.05)
    for done in range(2, 101):
        advance(done)
        logs.logging.getLogger("ava_core.test").info("line %d", done)
        print("text", done, flush=True)
        time.sleep(0.005)
(folder / "done").touch()
"""


def wait_for(path, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} didn't come"
        time.sleep(0.05)


def on_terminal(*words: str, **options) -> tuple[subprocess.Popen, int]:
    """A process in a session of its own on a terminal of its own, and our side of that terminal."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, *words], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, **options
        )
    finally:
        os.close(theirs)
    return process, ours


def test_work_goes_on_when_its_terminal_is_closed(tmp_path):
    process, terminal = on_terminal("-c", GOES_ON, str(tmp_path))
    wait_for(tmp_path / "begun")
    os.close(terminal)
    (tmp_path / "closed").touch()
    assert process.wait(120) == 0
    assert (tmp_path / "done").exists()


SIGNALLED = """
import signal, sys, time
from ava_core.interruption import Interrupted, handle_signals
handle_signals()
try:
    print("ready", flush=True)
    time.sleep(float(sys.argv[1]))
except Interrupted as interrupted:
    print(interrupted.word, interrupted.code)
    raise
"""


@pytest.mark.parametrize(
    ("number", "word"), [("SIGINT", "interrupted"), ("SIGTERM", "terminated"), ("SIGHUP", "hung up")]
)
def test_signals_are_exceptions_that_end_with_the_shell_s_code(number, word):
    number = getattr(signal, number)
    process = subprocess.Popen([sys.executable, "-c", SIGNALLED, "600"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=120)[0] == f"{word} {128 + number}\n"
    assert process.returncode == 128 + number


def test_hang_up_that_nohup_ignores_stays_ignored():
    process = subprocess.Popen(
        ["nohup", sys.executable, "-c", SIGNALLED, "1"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=120)[0] == "" and process.returncode == 0
