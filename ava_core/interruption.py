"""How a program of ours is ended from outside: a signal becomes an exception, and a closed terminal is no fault."""

from __future__ import annotations

import errno
import io
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
"""The signals that ask a program to end, and what it says then."""


class Interrupted(SystemExit):
    """A signal asked the process to end; the code is the shell's, 128 + the signal's number.

    Args:
        number: the signal, one of WORDS.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = signal.Signals(number)

    @property
    def word(self) -> str:
        """What happened, in a word."""
        return WORDS[self.number]


def handle_signals() -> None:
    """Let signals pass through the program as `Interrupted`, so that it closes and removes what it has begun.

    SIGHUP, which a terminal sends when it closes, stays ignored where it is ignored already: under nohup.
    """
    for number in heeded():
        signal.signal(number, _interrupt)


def heeded() -> list[signal.Signals]:
    """The signals of WORDS, but for a SIGHUP that is ignored."""
    return [each for each in WORDS if each != signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN]


def outlive_terminal() -> None:
    """Let work go on when its terminal is closed: what is written to it from then on is lost, and no error.

    Without this, a program in the background (`ava train ... & disown`) dies of EIO at its next line of progress.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream.isatty():
            stream.flush()
            setattr(sys, name, _on_terminal(stream))


def _on_terminal(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    raw = _Terminal(stream.fileno(), "w", closefd=False)
    raw.name = stream.name
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=stream.encoding, errors=stream.errors, line_buffering=True)


class _Terminal(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return len(data)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)
