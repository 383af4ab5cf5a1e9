"""The compiled pipeline, and a host with a fake `ava` to run it."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from pipelines.compile import compile_pipeline
from pipelines.host_runner import HostRunner

FAKE = Path(__file__).with_name("fake_ava.py")


@pytest.fixture(scope="session")
def ir() -> str:
    return compile_pipeline(["int8", "int4"])


class FakeHost:
    """A HostRunner whose `ava` is tests/pipelines/fake_ava.py."""

    def __init__(self, folder: Path, ir: str) -> None:
        self.folder, self.ir, self.lines = folder, ir, []
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        shutil.copy(FAKE, bin_folder / "ava")
        text = (bin_folder / "ava").read_text()
        (bin_folder / "ava").write_text(f"#!{sys.executable} -SE\n{text}")
        (bin_folder / "ava").chmod(0o755)
        self.environment = {
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "FAKE_JOURNAL": str(folder / "journal.jsonl"),
        }

    def run(self, fault: str = "", environment=None, **arguments):
        self.environment["FAKE_FAULT"] = fault
        runner = HostRunner(
            self.ir, self.folder / "runs", environment or (lambda task: self.environment), self.lines.append
        )
        return runner.run({"params_yaml": "preset: cpu/tiny\n", "data_uri": str(self.folder), **arguments})

    @property
    def journal(self) -> list[dict]:
        """What was called, in order."""
        path = self.folder / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def host(tmp_path, ir) -> FakeHost:
    return FakeHost(tmp_path, ir)
