"""Logging of a step: plain lines on standard error, everything in a file, nothing secret in either."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

LEVELS = ("debug", "info", "warning", "error")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s:]+:[^/@\s]+(?=@)")
_ASSIGNMENTS = re.compile(r"(?i)\b([\w-]*(?:token|password|secret|api[_-]?key)[\w-]*)(\s*[=:]\s*)(?!\s)(\S+)")


def redact(text: str) -> str:
    """Replace credentials in addresses and in `name=value` pairs of secret-looking names."""
    return _ASSIGNMENTS.sub(r"\1\2***", _CREDENTIALS.sub("***", text))


class _RedactingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def configure(level: str = "info", file: Path | None = None) -> None:
    """Send the logs of `ava_core` to standard error from `level` up, and all of them to `file`, flushed line by line."""
    logger = logging.getLogger("ava_core")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(level.upper())
    console.setFormatter(_RedactingFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    console.addFilter(lambda record: not getattr(record, "file_only", False))
    logger.addHandler(console)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file)
        handler.setFormatter(_RedactingFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
        logger.addHandler(handler)
