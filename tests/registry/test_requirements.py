"""A version's requirements are what its code imports; tests/serving/test_bare_environment.py installs them."""

import re
import zipfile

import pytest

from ava_core.errors import AvaError
from ava_core.registry import requirements as module
from ava_core.registry.code import write_code
from ava_core.registry.requirements import foreign_imports, own_modules, requirements

SERVED = "ava_core.serving.model_from_code"
PINNED = re.compile(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*")


def test_what_a_prediction_imports_is_pinned_without_local_labels():
    found = {line.partition("==")[0] for line in requirements(SERVED)}
    assert found >= {"mlflow", "onnxruntime", "pandas", "pydantic", "PyYAML", "torch", "transformers"}
    assert not found & {"omegaconf", "datasets", "deepspeed", "mlflow-skinny", "typer"}
    assert all(PINNED.fullmatch(line) for line in requirements(SERVED))


def test_archive_of_a_version_holds_all_that_its_script_imports(tmp_path):
    write_code(tmp_path / "code.zip")
    with zipfile.ZipFile(tmp_path / "code.zip") as archive:
        held = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in archive.namelist()}
    assert own_modules(SERVED) <= held


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Sources of a package that isn't there; `write(name, text)` adds one."""
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "made_up")

    def write(name: str, text: str = "") -> None:
        path = tmp_path / "made_up" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("__init__.py", "import yaml")
    return write


def test_imports_are_followed_into_functions_and_packages_but_not_where_types_alone_need_them(package):
    package("start.py", "from made_up.part import x\nif TYPE_CHECKING:\n    import docker\nelse:\n    import rich\n")
    package("part/__init__.py", "import json\nfrom made_up.part import inner\n")
    package(
        "part/inner.py", "def later():\n    import pandas.core as core, made_up.late\n    from numpy import array\n"
    )
    package("late.py", "from __future__ import annotations\ntry:\n    import torch\nexcept ImportError:\n    pass\n")
    package("apart.py", "import kfp\n")
    names = {"made_up", "made_up.start", "made_up.part", "made_up.part.inner", "made_up.late"}
    assert own_modules("made_up.start") == names
    assert foreign_imports("made_up.start").keys() == {"yaml", "rich", "pandas", "numpy", "torch"}


def test_what_a_package_imports_when_it_is_asked_counts(package):
    """A package may import what it gives with the first use of it."""
    package(
        "lazy/__init__.py", "def __getattr__(name): ...\nif TYPE_CHECKING:\n    from made_up.lazy.heavy import work\n"
    )
    package("lazy/heavy.py", "import torch\n")
    package("start.py", "from made_up.lazy import work\n")
    assert "torch" in foreign_imports("made_up.start")


def test_import_that_no_installed_package_has_is_named_with_who_imports_it(package):
    package("start.py", "import no_such_module.part")
    with pytest.raises(AvaError, match=r"no_such_module, which made_up.start imports, belongs to no installed package"):
        requirements("made_up.start")
