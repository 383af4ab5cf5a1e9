"""Documents to passages: structure, length, overlap, and places that can be looked up."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ava_core.data.sources.source import Document
from ava_core.retrieval.splitting import split

PLAY = """Hamlet

ACT I

SCENE I. Elsinore. A platform.

BERNARDO
Who's there?

FRANCISCO
Nay, answer me: stand, and unfold yourself.

SCENE II. A room of state.

KING
Though yet of Hamlet our dear brother's death
The memory be green.
"""
GUIDE = """# Guide

Before all.

## Install

Take two commands.

### On a cluster

Ask someone.

## Use
Directly below.
"""


def words(texts):
    return [len(text.split()) for text in texts]


def passages(text, size=8, overlap=0, *, markdown=False, label=""):
    return list(split(Document("doc", text, markdown), words, size, overlap, label))


def test_headings_of_plays_and_of_markdown_stand_above_what_follows():
    assert [(p.heading, p.text.split("\n")[0]) for p in passages(PLAY, 40)] == [
        ("", "Hamlet"),
        ("ACT I > SCENE I. Elsinore. A platform.", "BERNARDO"),
        ("ACT I > SCENE II. A room of state.", "KING"),
    ]
    assert [(p.heading, p.text) for p in passages(GUIDE, 40, markdown=True)] == [
        ("Guide", "Before all."),
        ("Guide > Install", "Take two commands."),
        ("Guide > Install > On a cluster", "Ask someone."),
        ("Guide > Use", "Directly below."),
    ]


def test_marks_of_markdown_are_text_in_a_document_that_is_none():
    assert passages("# no heading\n\nbut text", 40)[0].text == "# no heading\n\nbut text"


def test_paragraphs_stay_whole_then_sentences_then_words():
    text = "One two three. Four five six seven. Eight.\n\nNine ten."
    assert [p.text for p in passages(text, 8)] == ["One two three. Four five six seven. Eight.", "Nine ten."]
    assert [p.text for p in passages(text, 7)] == ["One two three. Four five six seven.", "Eight.\n\nNine ten."]
    assert [p.text for p in passages(text, 3)] == ["One two three.", "Four five six", "seven. Eight.", "Nine ten."]


def test_overlap_repeats_whole_sentences_and_never_a_whole_passage():
    text = "A b. C d. E f. G h. I j."
    assert [p.text for p in passages(text, 4, 2)] == ["A b. C d.", "C d. E f.", "E f. G h.", "G h. I j."]
    assert [p.text for p in passages(text, 4, 1)] == ["A b. C d.", "E f. G h.", "I j."]
    assert len(passages("A b c d. E f g h.", 4, 2)) == 2


def test_overlap_ends_at_a_heading():
    found = passages("## One\n\nA b. C d.\n\n## Two\n\nE f.", 4, 2, markdown=True)
    assert [p.text for p in found] == ["A b. C d.", "E f."]


def test_a_word_that_is_longer_than_a_passage_stays_whole():
    assert [p.text for p in split(Document("d", "a bbbbbbbbbb c"), lambda t: [len(x) for x in t], 4, 0)] == [
        "a",
        "bbbbbbbbbb",
        "c",
    ]


def test_passages_say_where_they_are_from():
    found = passages(PLAY, 6, label="staff")
    assert {p.document for p in found} == {"doc"}
    assert {p.label for p in found} == {"staff"}
    assert len({p.source_digest for p in found}) == 1
    assert passages(PLAY + "more", 6)[0].source_digest != found[0].source_digest
    assert all(PLAY[p.start : p.end] == p.text for p in found)


@pytest.mark.parametrize("text", ["", " \n\n\t\n", "\n"])
def test_a_document_without_text_has_no_passages(text):
    assert passages(text) == []


@given(
    st.text(st.sampled_from("ab .!?\n#\t"), max_size=200),
    st.integers(1, 12),
    st.integers(0, 6),
    st.booleans(),
)
def test_no_word_is_lost_and_no_passage_is_too_long(text, size, overlap, markdown):
    found = passages(text, size, min(overlap, size // 2), markdown=markdown)
    assert all(text[p.start : p.end] == p.text and p.text.strip() == p.text for p in found)
    assert all(len(p.text.split()) <= size for p in found)
    said = {match.span() for p in found for match in re.finditer(r"\S+", text[: p.end]) if match.start() >= p.start}
    missing = [span for match in re.finditer(r"\S+", text) if (span := match.span()) not in said]
    assert markdown or not missing
