"""Cleaning: each filter does what it says, and the counts add up."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core.config.data import CleaningConfig
from ava_core.data.cleaning import Cleaner
from ava_core.data.sources.source import Document

VERSE = "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\n"


def clean(text: str, markdown: bool = False, **fields):
    cleaner = Cleaner(CleaningConfig(**{"min_characters": 0, "min_letter_share": 0.0, **fields}))
    return cleaner.clean(Document("d", text, markdown)), {item["name"]: item for item in cleaner.report()["filters"]}


def test_unicode_is_composed_and_line_ends_are_one_newline():
    document, report = clean("cafe\u0301\r\nna\u00efve\rend\n")
    assert document.text == "caf\u00e9\nna\u00efve\nend\n"
    assert report["normalize_unicode"]["reasons"] == {"line_end": 2, "not_nfc": 1}


def test_control_characters_go_but_tab_newline_and_joiners_stay():
    document, report = clean("a\x00b\x1b[0m\tc\u200bd\x85\ufeff \u0915\u094d\u200d\u0937\n")
    assert document.text == "ab[0m\tcd \u0915\u094d\u200d\u0937\n"
    assert report["strip_control_characters"]["reasons"] == {"control_character": 5}


def test_blank_lines_and_spaces_at_line_ends_collapse():
    document, report = clean("\n\n one  \n \n\n\ntwo\t\n\nthree")
    assert document.text == " one\n\ntwo\n\nthree\n"
    assert report["collapse_blank_lines"]["reasons"] == {"trailing_space": 3, "blank_lines": 1}


def test_markdown_is_rendered_only_for_markdown():
    assert clean("*Exit*", markdown=True)[0].text == "Exit\n"
    assert clean("*Exit*")[0].text == "*Exit*\n"
    assert clean("*Exit*", markdown=True, render_markdown=False)[0].text == "*Exit*\n"


@pytest.mark.parametrize(
    ("text", "fields", "name", "reason"),
    [
        ("short\n", {"min_characters": 6}, "min_characters", "shorter than 6 characters"),
        ("  \n", {}, "min_characters", "empty"),
        ("12 34 56 ab\n", {"min_letter_share": 0.3}, "min_letter_share", "letters below a share of 0.3"),
        ("a\n" * 5 + "b\n", {"max_line_repetition": 0.6}, "max_line_repetition", "repeated lines above a share of 0.6"),
    ],
)
def test_document_is_dropped_with_its_reason(text, fields, name, reason):
    document, report = clean(text, **fields)
    assert document is None
    assert report[name]["reasons"] == {reason: 1}
    assert report[name]["documents_out"] == 0
    assert report[name]["bytes_out"] == 0
    assert report[name]["samples"][0]["document"] == "d"


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("123456\n", {"min_characters": 6}),
        ("12 ab\n", {"min_letter_share": 0.5}),
        ("\u0915\u094d\u0937\u093f 1\n", {"min_letter_share": 0.8}),
        ("a\n\n" * 2 + "b\n", {"max_line_repetition": 0.34}),
        ("a\n" * 50, {"max_line_repetition": 1.0}),
    ],
)
def test_document_at_the_bound_stays(text, fields):
    assert clean(text, **fields)[0] is not None


def test_filter_that_is_off_is_not_in_the_report():
    _, report = clean(VERSE, normalize_unicode=False, collapse_blank_lines=False, max_line_repetition=1.0)
    assert list(report) == ["strip_control_characters", "render_markdown", "min_characters"]


def test_lone_surrogate_is_replaced():
    document, _ = clean(json.loads('"a\\ud800b and more"'))
    assert document.text == "a?b and more\n"


@settings(deadline=None)
@given(st.lists(st.text(max_size=80), max_size=8))
def test_counts_add_up_and_follow_one_another(texts):
    cleaner = Cleaner(CleaningConfig(min_characters=5))
    kept = [item for text in texts if (item := cleaner.clean(Document("d", text, True)))]
    report = cleaner.report()
    assert (report["documents_in"], report["documents_out"]) == (len(texts), len(kept))
    assert report["bytes_in"] == sum(len(text.encode()) for text in texts)
    assert report["bytes_out"] == sum(len(item.text.encode()) for item in kept)
    documents, size = report["documents_in"], report["bytes_in"]
    for count in report["filters"]:
        assert (count["documents_in"], count["bytes_in"]) == (documents, size)
        documents, size = count["documents_out"], count["bytes_out"]
    assert (documents, size) == (report["documents_out"], report["bytes_out"])


@settings(deadline=None)
@given(st.text(min_size=1, max_size=200))
def test_cleaning_a_clean_text_changes_nothing(text):
    once = clean(text, max_line_repetition=1.0)[0]
    if once is not None:
        assert clean(once.text, max_line_repetition=1.0)[0].text == once.text
