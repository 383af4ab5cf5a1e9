"""Logging of a step: plain lines on standard error, everything in a file, nothing secret in either."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import TextIO

from ava_core.redaction import redact

LEVELS = ("debug", "info", "warning", "error")


class _RedactingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _StandardError(logging.StreamHandler):
    """Writes to what `sys.stderr` is now: while bars are shown, that is above them."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


class _LogFile(logging.FileHandler):
    """A log file that is flushed line by line and whose own failure, such as a full disk, stops nothing."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what the failed write left in the buffer
            super().close()


def configure(level: str = "info", file: Path | None = None) -> None:
    """Send the logs of `ava_core` to standard error from `level` up, and all of them to `file`, flushed by line."""
    logger = logging.getLogger("ava_core")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    console = _StandardError()
    console.setLevel(level.upper())
    console.setFormatter(_RedactingFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    console.addFilter(lambda record: not getattr(record, "file_only", False))
    logger.addHandler(console)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(file)
        handler.setFormatter(_RedactingFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
        logger.addHandler(handler)
