"""Few digests for a whole folder: whatever is changed in it, added or taken away is named."""

import shutil
from dataclasses import replace

import pytest

from ava_core.errors import IntegrityError
from ava_core.runtime import manifest, pins


@pytest.fixture
def folder(tmp_path):
    """A file of its own, and two outputs of steps with a manifest each."""
    whole = tmp_path / "whole"
    for name in ("model", "int8"):
        output = whole / "artifacts" / name
        (output / "deep").mkdir(parents=True)
        (output / "weights").write_text(f"weights of {name}")
        (output / "deep" / "config").write_text("{}")
        empty = dict.fromkeys(("step", "key", "version", "code", "config"), "x")
        contents = manifest.Manifest(**empty, choices={}, inputs={}, threads=1, ranks=1)
        manifest.write(output, replace(contents, files=manifest.describe_files(output)))
    (whole / "script.py").write_text("print()")
    return whole


def test_a_manifest_stands_for_its_folder(folder):
    described = pins.describe(folder)
    assert sorted(described) == ["artifacts/int8/manifest.json", "artifacts/model/manifest.json", "script.py"]
    pins.check(folder, described)
    pins.check(folder / "artifacts" / "int8", pins.part(described, "artifacts/int8"))


def rehashed_manifest(folder):
    output = folder / "artifacts" / "int8"
    (output / "weights").write_text("other weights")
    manifest.write(output, replace(manifest.read(output), files=manifest.describe_files(output)))


CHANGES = {
    "script.py: is not the file": lambda folder: (folder / "script.py").write_text("print(1)"),
    "script.py: is missing": lambda folder: (folder / "script.py").unlink(),
    "script.pyc: was not registered": lambda folder: (folder / "script.pyc").write_text(""),
    "artifacts/more: was not registered": lambda folder: (folder / "artifacts" / "more").write_text(""),
    "int8/weights: its bytes are not those": lambda folder: (folder / "artifacts/int8/weights").write_text(
        "Weights of"
    ),
    "int8/deep/config: is missing": lambda folder: (folder / "artifacts/int8/deep/config").unlink(),
    "int8/deep/x: is not in the manifest": lambda folder: (folder / "artifacts/int8/deep/x").write_text(""),
    "int8/manifest.json: is not the file": rehashed_manifest,
    "model/manifest.json: is missing": lambda folder: shutil.rmtree(folder / "artifacts" / "model"),
}


@pytest.mark.parametrize(
    ("fault", "change"), CHANGES.items(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_whatever_is_changed_is_named(folder, fault, change):
    described = pins.describe(folder)
    change(folder)
    with pytest.raises(IntegrityError, match=fault):
        pins.check(folder, described)


def test_pins_of_another_folder_don_t_fit(folder):
    described = pins.describe(folder)
    with pytest.raises(IntegrityError, match=r"int8/manifest.json: is not the file that was registered"):
        pins.check(folder / "artifacts" / "int8", pins.part(described, "artifacts/model"))
    with pytest.raises(IntegrityError, match="was not registered with the others"):
        pins.check(folder / "artifacts" / "int8", pins.part(described, "artifacts/int4"))


@pytest.mark.parametrize("tag", ["{", "3", '"x"'])
def test_pins_that_can_not_be_read_are_refused(tag):
    assert pins.read({}) is None
    with pytest.raises(IntegrityError, match=r"tag ava.pins: can't be read"):
        pins.read({pins.TAG: tag})
