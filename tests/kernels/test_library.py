import shutil
import sys

import pytest
import torch

from ava_core.kernels import build, usable
from ava_core.kernels.build import library_path
from ava_core.kernels.library import NEEDED_FLAGS, cpu_flags, library


@pytest.fixture(autouse=True)
def native_kernels():
    """These tests run everywhere."""


def test_kernels_are_built_where_they_can_be():
    able = cpu_flags().issuperset(NEEDED_FLAGS) and shutil.which("g++") and sys.platform == "linux"
    if not able:
        pytest.skip("no compiler, or no AVX-512 BF16")
    assert library() is not None, "run `python -m ava_core.kernels.build`"


def test_changed_sources_have_another_library(tmp_path, monkeypatch):
    before = library_path().name
    for source in build.SOURCES.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert library_path().name == before
    (tmp_path / "linear.cpp").write_text("// changed")
    assert library_path().name != before


def test_float32_and_compiled_graphs_stay_with_torch():
    assert not usable(torch.ones(2))
    assert not usable(torch.ones(2, dtype=torch.bfloat16), torch.ones(2))
    seen = []

    def look(x):
        seen.append(usable(x))
        return x + 1

    torch.compile(look, backend="eager")(torch.ones(2, dtype=torch.bfloat16))
    assert seen[0] is False
