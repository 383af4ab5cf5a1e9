"""The command line in this process: from the arguments to the exit code and the lines."""

import contextlib
import functools
import io
import logging
import os
from typing import NamedTuple
from unittest import mock

import pytest
import typer

from ava_core.cli import main


class Result(NamedTuple):
    code: int
    out: str
    err: str


@functools.cache
def built_command(app):
    """The parser of all commands' flags; a Typer builds it anew at each call."""
    return typer.main.get_command(app)


@pytest.fixture
def ava(tmp_path, monkeypatch):
    """Run `ava ARGUMENTS` in an empty folder; keywords are environment variables."""
    monkeypatch.chdir(tmp_path)
    command = built_command(main.app)

    def run(*arguments, **environment) -> Result:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AVA_")}
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, {**kept, **environment}, clear=True),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = main._run(lambda: command([str(item) for item in arguments], standalone_mode=False))
            logging.getLogger("ava_core").handlers.clear()
        return Result(code, out.getvalue(), err.getvalue())

    return run
