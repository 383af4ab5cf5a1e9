"""Markdown to text: marks go, words and lines stay."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core.data.markdown import render_markdown

PLAY = """# Othello

## ACT I

### SCENE I. Venice. A street.

_Enter RODERIGO
and IAGO_

**RODERIGO**$
Tush! never tell me; I take it *much* unkindly$
That thou, Iago, who hast had my purse\\--

**First Lord**$
__\\[Aside]_$
Hold!

**Prologue**
In Troy, there lies the scene.

[Within]_

_Exeunt_
""".replace("$", "  ")
"""A dollar sign stands for the two spaces of a hard break, which editors would strip."""

RENDERED = """Othello

ACT I

SCENE I. Venice. A street.

Enter RODERIGO and IAGO

RODERIGO
Tush! never tell me; I take it much unkindly
That thou, Iago, who hast had my purse--

FIRST LORD
[Aside]
Hold!

PROLOGUE
In Troy, there lies the scene.

[Within]

Exeunt
"""


def test_play_becomes_clean_verse():
    text, marks = render_markdown(PLAY)
    assert text == RENDERED
    assert marks["heading"] == 3
    assert marks["hard_break"] == 4
    assert marks["speaker_capitals"] == 2
    assert marks["unpaired_emphasis"] == 2


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("a **bold** and `code_with_marks*` word", "a bold and code_with_marks* word"),
        ("see [the play](https://example.org/x_y) now", "see the play now"),
        ("![a portrait](a.png)", "a portrait"),
        ("snake_case and __init__.py", "snake_case and init.py"),
        ("- one\n- two\n\n3. three\n4. four", "- one\n\n- two\n\n3. three\n\n4. four"),
        ("> quoted\n> words", "quoted words"),
        ("```\nx  =  1\n  y\n```", "x  =  1\n  y"),
        ("a <b>tag</b> and <!-- note --> text", "a tag and  text"),
        ("<div>\nwords\n</div>", "words"),
        ("Tom &amp; Jerry &c.", "Tom & Jerry &c."),
        ("| a | b |\n|---|---|\n| *1* | 2 |", "a\tb\n\n1\t2"),
        ("two\n\n\n\nparagraphs", "two\n\nparagraphs"),
        ("**Note** is not a speaker", "Note is not a speaker"),
    ],
)
def test_mark_goes_and_its_words_stay(markdown, text):
    assert render_markdown(markdown)[0] == text + "\n"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.from_regex(r"[A-Za-z']{1,8}", fullmatch=True), min_size=1, max_size=8), max_size=6))
def test_plain_paragraphs_pass_unchanged(paragraphs):
    text = "\n\n".join(" ".join(words) for words in paragraphs) + "\n"
    assert render_markdown(text)[0] == text
