"""Runs the tiny step of `counting_step.py` through the real command line."""

import contextlib
import importlib.util
import io
import logging
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from ava_core.cli import main
from ava_core.steps.table import STEPS

PROGRAM = Path(__file__).with_name("counting_step.py")
ROOT = Path(__file__).parents[2]


@cache
def counting_step():
    """The module `counting_step.py`; tests are no package that could be imported from."""
    spec = importlib.util.spec_from_file_location("counting_step", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Result(NamedTuple):
    """How a run ended."""

    returncode: int
    stderr: str


class Counting:
    """`ava count` in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.output = folder / "out"
        self.work = folder / "work"
        self.trace = folder / "trace"
        self.program = counting_step()

    def _flags(self, flags, output, work) -> list[str]:
        common = ["--letter", "a", "--params-yaml", "threads: 1"]
        common += ["--output", str(output or self.output), "--work", str(work or self.work)]
        return [*common, *map(str, flags)]

    def _environment(self, settings) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AVA_")}
        given = {name: str(value) for name, value in settings.items()}
        return {**kept, "PYTHONPATH": str(ROOT), "COUNT_TRACE": str(self.trace), **given}

    def start(self, *flags, output=None, work=None, **environment) -> subprocess.Popen:
        """Start a process of its own, for what only a process can show."""
        return subprocess.Popen(
            [sys.executable, str(PROGRAM), *self._flags(flags, output, work)],
            cwd=self.folder,
            env=self._environment(environment),
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *flags, output=None, work=None, **environment) -> Result:
        """Run in this process, from the flags to the exit code."""
        arguments = self._flags(flags, output, work)
        stderr = io.StringIO()
        with (
            mock.patch.dict(os.environ, self._environment(environment), clear=True),
            mock.patch.dict(STEPS),
            contextlib.redirect_stderr(stderr),
        ):
            app = self.program.build_app()
            code = main._run(lambda: app(arguments, standalone_mode=False))
            logging.getLogger("ava_core").handlers.clear()
        return Result(code, stderr.getvalue())

    def computed(self) -> list[str]:
        """Blocks that were really computed, in order, over all runs."""
        return self.trace.read_text().split() if self.trace.exists() else []


@pytest.fixture
def counting(tmp_path):
    return Counting(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def read_all():
    return contents
