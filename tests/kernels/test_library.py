import shutil
import sys

import pytest
import torch

from ava_core import kernels
from ava_core.config.hardware import PRODUCTS
from ava_core.errors import ConfigError
from ava_core.kernels import build, library, usable
from ava_core.kernels.build import library_path
from ava_core.kernels.library import NEEDED_FLAGS, TILE_FLAGS, cpu_flags, has_tiles, loaded


@pytest.fixture(autouse=True, params=[None])
def native_kernels():
    """These tests run everywhere."""


def test_kernels_are_built_where_they_can_be():
    able = cpu_flags().issuperset(NEEDED_FLAGS) and shutil.which("g++") and sys.platform == "linux"
    if not able:
        pytest.skip("no compiler, or no AVX-512 BF16")
    assert loaded() is not None, "run `python -m ava_core.kernels.build`"


def test_changed_sources_have_another_library(tmp_path, monkeypatch):
    before = library_path().name
    shutil.copytree(build.SOURCES, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert library_path().name == before
    (tmp_path / "products" / "tiles.h").write_text("// changed")
    assert library_path().name != before


def test_what_can_be_asked_for_is_compiled():
    assert {*build.PATHS} == {*PRODUCTS, library.AMX}


BFLOAT16 = torch.zeros(2, dtype=torch.bfloat16)


def test_each_choice_has_its_products(monkeypatch):
    """By default, and as `native`, those of AMX where a process may use it, and else those of AVX-512."""
    able, best = loaded() is not None, "amx" if has_tiles() else "avx512"
    for asked, path, products in (
        ("auto", "native", best),
        ("onednn", "onednn", None),
        ("off", "off", None),
        *((asked, "native", best if asked == "native" else asked) for asked in ("native", *PRODUCTS) if able),
    ):
        monkeypatch.setenv("AVA_KERNELS", asked)
        assert library.path() == (path if able else "off")
        assert kernels.products_pay() is (able and products is not None)
        assert usable(BFLOAT16) is (able and asked != "off")
        if able and products:
            assert library.products_path() == products


@pytest.mark.skipif(loaded() is None, reason="no native kernels here")
@pytest.mark.parametrize("why", ["another CPU", "an assembler without AMX", "refused by the system"])
def test_without_tiles_products_are_those_of_avx512(why, monkeypatch):
    class Without:
        def __getattr__(self, name):
            if why == "an assembler without AMX" and name.endswith("_amx"):
                raise AttributeError(name)
            return (lambda: -1) if name == "ava_allow_tiles" else getattr(loaded(), name)

    flags = {*NEEDED_FLAGS, *(() if why == "another CPU" else TILE_FLAGS)}
    monkeypatch.setattr(library, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(library, "loaded", Without)
    monkeypatch.setattr(library, "has_tiles", has_tiles.__wrapped__)
    monkeypatch.setenv("AVA_KERNELS", "native")
    assert library.products_path() == "avx512"


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
