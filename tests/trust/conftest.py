"""Folders that somebody else may have changed, and the command line that is given them."""

import shutil

import pytest

from tests.cli.conftest import ava  # noqa: F401  a fixture


@pytest.fixture
def plain(tiny_model, tmp_path):
    """A model folder that no manifest stands for, as other tools leave it."""
    folder = shutil.copytree(tiny_model, tmp_path / "plain")
    (folder / "manifest.json").unlink()
    return folder
