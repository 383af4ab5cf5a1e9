"""Meanings are read from the source, along the classes that a section inherits from; no field is without one."""

import importlib.util
import sys

import pytest

from ava_core.config.explaining.meanings import first_sentence, meaning_of, summary_of
from ava_core.config.explaining.settings import all_settings
from ava_core.config.kubernetes import StepsConfig
from ava_core.config.quantize import Int4Config, SchemeConfig
from ava_core.config.schema import AvaConfig
from ava_core.config.sft import SftConfig
from ava_core.config.train import TrainConfig

SOURCE = '''
"""A module."""
from ava_core.config.section import Section


class Base(Section):
    """A base. It has more to say."""

    steps: int = 1
    """How many, over
    two lines."""
    silent: int = 2
    other: int = 3

    class Inner(Section):
        """Inside."""

        depth: int = 0
        """Of the inner one."""


class Child(Base):
    steps: int = 5
    silent: int = 6
    """Said by the child."""
    part: Base = Base()
'''


@pytest.fixture
def made(tmp_path, monkeypatch):
    path = tmp_path / "made_for_meanings.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


def test_every_field_of_every_section_has_a_meaning():
    """A field without one has no docstring under it: write its meaning there, as under its neighbours."""
    assert [key for key, setting in all_settings().items() if not setting.meaning] == []


def test_a_docstring_under_a_field_is_its_meaning_in_one_line(made):
    assert meaning_of(made.Base, "steps") == "How many, over two lines."
    assert meaning_of(made.Base.Inner, "depth") == "Of the inner one."


def test_only_what_is_right_under_a_field_counts(made):
    assert meaning_of(made.Base, "silent") == meaning_of(made.Base, "other") == ""


def test_a_changed_default_keeps_the_meaning_and_a_changed_meaning_wins(made):
    assert meaning_of(made.Child, "steps") == "How many, over two lines."
    assert meaning_of(made.Child, "silent") == "Said by the child."
    assert meaning_of(SftConfig, "momentum") == meaning_of(TrainConfig, "momentum") != ""
    assert meaning_of(Int4Config, "size") == meaning_of(SchemeConfig, "size") != ""


def test_a_section_without_a_docstring_means_what_its_class_says(made):
    assert meaning_of(made.Child, "part") == summary_of(made.Base) == "A base. It has more to say."
    assert meaning_of(AvaConfig, "train") == "Training with DeepSpeed."


def test_a_field_that_is_made_while_the_program_runs_has_its_description():
    assert meaning_of(StepsConfig, "train") == "Of train, over `every`."


def test_the_first_sentence_ends_at_a_full_stop_or_a_semicolon():
    assert first_sentence("Threads; 0: all. More.") == "Threads"
    assert first_sentence("Share of 0.5 of it. More.") == "Share of 0.5 of it"
    assert first_sentence("One.") == "One"
