import shutil
import sys

import pytest
import torch

from ava_core import kernels
from ava_core.errors import ConfigError
from ava_core.kernels import build, usable
from ava_core.kernels.build import library_path
from ava_core.kernels.library import NEEDED_FLAGS, cpu_flags, loaded


@pytest.fixture(autouse=True)
def native_kernels():
    """These tests run everywhere."""


def test_kernels_are_built_where_they_can_be():
    able = cpu_flags().issuperset(NEEDED_FLAGS) and shutil.which("g++") and sys.platform == "linux"
    if not able:
        pytest.skip("no compiler, or no AVX-512 BF16")
    assert loaded() is not None, "run `python -m ava_core.kernels.build`"


def test_changed_sources_have_another_library(tmp_path, monkeypatch):
    before = library_path().name
    for source in build.SOURCES.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert library_path().name == before
    (tmp_path / "linear.cpp").write_text("// changed")
    assert library_path().name != before


BFLOAT16 = torch.zeros(2, dtype=torch.bfloat16)


def test_with_amx_products_are_torchs_and_the_other_kernels_stay(monkeypatch):
    """oneDNN's products are several times as fast there. AVA_KERNELS may ask for either, and for neither."""
    able = loaded() is not None
    monkeypatch.delenv("AVA_KERNELS", raising=False)
    for flags, pay in ((set(NEEDED_FLAGS), able), ({*NEEDED_FLAGS, "amx_bf16"}, False)):
        monkeypatch.setattr("ava_core.kernels.library.cpu_flags", lambda flags=flags: frozenset(flags))
        assert kernels.products_pay() is pay and usable(BFLOAT16) is able
        for asked, pays, works in (("onednn", False, able), ("off", False, False)):
            monkeypatch.setenv("AVA_KERNELS", asked)
            assert kernels.products_pay() is pays and usable(BFLOAT16) is works
        if able:
            monkeypatch.setenv("AVA_KERNELS", "native")
            assert kernels.products_pay() and usable(BFLOAT16)
        monkeypatch.delenv("AVA_KERNELS")


def test_kernels_that_are_asked_for_and_not_there_are_an_error(monkeypatch):
    monkeypatch.setattr("ava_core.kernels.library.loaded", lambda: None)
    monkeypatch.delenv("AVA_KERNELS", raising=False)
    assert not usable(BFLOAT16)
    monkeypatch.setenv("AVA_KERNELS", "native")
    with pytest.raises(ConfigError, match="AVA_KERNELS = native: this machine can't"):
        usable(BFLOAT16)


def test_float32_and_compiled_graphs_stay_with_torch():
    assert not usable(torch.ones(2))
    assert not usable(torch.ones(2, dtype=torch.bfloat16), torch.ones(2))
    seen = []

    def look(x):
        seen.append(usable(x))
        return x + 1

    torch.compile(look, backend="eager")(torch.ones(2, dtype=torch.bfloat16))
    assert seen[0] is False
