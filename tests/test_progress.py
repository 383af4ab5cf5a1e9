import logging
import os
import re

from ava_core import progress
from tests.test_interruption import on_terminal


def test_plain_lines_come_now_and_then_with_share_figures_and_remaining_time(monkeypatch, caplog):
    clock = iter([0.0, 0.0, 4.0, 10.5, 12.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "ava_core"), progress.Progress().task("train", 100) as advance:
        for done in (0, 20, 50, 60, 100):
            advance(done, loss="3.2", tokens_per_second="9")
    assert [record.getMessage().split("  ") for record in caplog.records] == [
        ["train", "50%", "loss 3.2", "tokens per second 9", "ETA 10 s"],
        ["train 100%", "loss 3.2", "tokens per second 9"],
    ]


def test_quiet_shows_nothing(caplog, capsys):
    with caplog.at_level(logging.INFO, "ava_core"), progress.Progress(quiet=True).task("x", 1) as advance:
        advance(1)
    assert not caplog.records
    assert capsys.readouterr().err == ""


ON_A_TERMINAL = """
import logging, time
from ava_core.runtime import logs
from ava_core.progress import Progress
logs.configure()
progress = Progress()
log = logging.getLogger("ava_core.test")
with progress.task("outer", 4) as outer:
    for done in range(4):
        outer(done)
        with progress.task("inner", 3) as inner:
            for part in range(3):
                inner(part)
                log.info("line %d of %d", part, done)
                time.sleep(0.06)
        outer(done + 1)
"""


def test_lines_of_the_log_stand_alone_above_the_bars():
    """What a terminal shows in the end, as a terminal emulator sees it."""
    process, terminal = on_terminal("-c", ON_A_TERMINAL, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"})
    shown = shown_lines(read_all(terminal))
    assert process.wait(60) == 0
    lines = [line for line in shown if "line " in line]
    expected = [f"INFO    line {part} of {done}" for done in range(4) for part in range(3)]
    assert [line.split(" ", 1)[1] for line in lines] == expected
    bars = [line for line in shown if "inner" in line or "outer" in line]
    assert sum("outer" in line for line in bars) == 1, "one display, and no halves of it left behind"


def read_all(terminal: int) -> str:
    """Everything that is written to a terminal until it is closed."""
    data = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not part:
            break
        data += part
    os.close(terminal)
    return data.decode()


def shown_lines(written: str) -> list[str]:
    """The lines that stand on a tall terminal in the end: carriage return, erase line and cursor up are obeyed."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\??[0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", written):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1] or 1)
        elif part in ("\x1b[2K", "\x1b[K"):
            lines[row] = ""
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]
