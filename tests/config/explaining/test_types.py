"""Types and bounds in words, and units."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from ava_core.config.data import SourceConfig
from ava_core.config.explaining.types import shape_of
from ava_core.config.explaining.units import unit_of
from ava_core.config.section import LARGEST, Positive, Text


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (bool, "true or false"),
        (Positive, "integer, > 0, <= 2^31 - 1"),
        (Annotated[float, Field(ge=0.0, lt=1.0)], "number, >= 0, < 1"),
        (Annotated[int, Field(ge=0, le=LARGEST)] | None, "integer or null, >= 0, <= 2^31 - 1"),
        (Text, "text, not empty"),
        (Annotated[Text, Field(max_length=250)], "text, not empty, at most 250 characters"),
        (Annotated[str, Field(pattern="^a+$")], "text, matches `^a+$`"),
        (Literal["a", "b"] | None, "text or null, one of a, b"),
        (Literal[0, 1], "integer, one of 0, 1"),
        (Annotated[list[Literal["a", "b"]], Field(min_length=2)], "list of text, at least 2 entries, each one of a, b"),
        (dict[str, Positive], "mapping of names to integer, each > 0, each <= 2^31 - 1"),
        (float | str, "number or text"),
        (list[SourceConfig], "list of sections"),
        (SourceConfig, "section"),
    ],
)
def test_a_type_in_words(annotation, words):
    assert shape_of(annotation).words == words


def test_sections_in_lists_and_mappings_are_found():
    assert (shape_of(list[SourceConfig]).section, shape_of(list[SourceConfig]).repeated) == (SourceConfig, "[]")
    assert (shape_of(dict[str, SourceConfig]).section, shape_of(dict[str, SourceConfig]).repeated) == (
        SourceConfig,
        "NAME",
    )
    assert shape_of(SourceConfig | None).section is SourceConfig


@pytest.mark.parametrize(
    ("name", "meaning", "unit"),
    [
        ("memory_budget", "GiB that a training process may take.", "GiB"),
        ("evaluate_every", "Steps between measurements.", "steps"),
        ("max_tokens", "Longest conversation in tokens, with others.", "tokens"),
        ("timeout_seconds", "Longest wait.", "seconds"),
        ("size", "Share of the bytes.", "share"),
        ("min_frequency", "Pairs seen less often are not merged.", ""),
        ("momentum", "Of Muon and Lion.", ""),
    ],
)
def test_a_unit_is_that_of_the_meaning_or_of_the_name(name, meaning, unit):
    assert unit_of(name, meaning) == unit
