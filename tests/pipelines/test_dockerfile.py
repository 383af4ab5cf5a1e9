"""The Dockerfile's stages have the sources that they run, without an engine."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = re.compile(r"-m (ava_core[\w.]+)")


def stages() -> dict[str, str]:
    """Text of each stage, by name."""
    parts = re.split(r"(?m)^FROM .* AS ([\w-]+)$", (ROOT / "docker" / "Dockerfile").read_text())
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def programs() -> list[tuple[str, str]]:
    """Name of a stage, and a module of ours that it runs from copied sources."""
    return [(name, found[1]) for name, text in stages().items() for found in RUN.finditer(text)]


@pytest.mark.parametrize(("stage", "program"), programs())
def test_stage_copies_what_its_program_imports(stage, program, tmp_path):
    text = stages()[stage]
    for line in re.findall(r"(?m)^COPY (ava_core.*)$", text[: text.index(program)]):
        *sources, target = line.split()
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target)
            else:
                (tmp_path / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / target)
    code = f"import os, sys; sys.path.insert(0, os.getcwd()); import {program} as module; print(module.__file__)"
    answer = subprocess.run(
        [sys.executable, "-IS", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip().startswith(str(tmp_path))


def test_there_are_programs():
    assert {"corpus"} <= {stage for stage, _ in programs()}
