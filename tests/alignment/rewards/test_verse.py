"""Metre and lines: what they say of the author's verse, and of the same words without its form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ava_core.alignment.rewards.lines import lines_of_verse
from ava_core.alignment.rewards.lines import reward as lines_reward
from ava_core.alignment.rewards.metre import metre
from ava_core.alignment.rewards.metre import reward as metre_reward
from ava_core.alignment.rewards.syllables import by_vowels, fewest_and_most, syllables_of_line
from tests.alignment.rewards.verses import (
    MACBETH,
    PORTIA,
    THESEUS,
    VERSES,
    answers,
    as_prose,
    in_one_line,
    in_pairs_of_words,
)


@pytest.mark.parametrize(
    ("word", "counts"),
    [
        ("mercy", (2, 2)),
        ("'tis", (1, 1)),
        ("every", (2, 3)),  # two pronunciations
        ("strain'd", (1, 1)),  # as strained
        ("banish'd", (2, 2)),
        ("wanted", (2, 2)),
        ("hamlet's", (2, 2)),
        ("know'st", (1, 1)),  # from here on by vowels
        ("o'er", (1, 1)),
        ("prithee", (2, 2)),
        ("desdemona", (4, 4)),
        ("xyz", (1, 1)),
    ],
)
def test_syllables_of_words_of_the_plays(word, counts):
    assert fewest_and_most(word) == counts


@pytest.mark.parametrize(
    ("word", "count"),
    [("name", 1), ("table", 2), ("named", 1), ("wanted", 2), ("faces", 2), ("names", 1), ("lion", 2), ("nation", 2),
     ("dual", 2), ("equal", 2), ("being", 2), ("crying", 2), ("hmm", 1)],
)  # fmt: skip
def test_vowels_alone_count_ordinary_words(word, count):
    assert by_vowels(word) == count


def test_apostrophes_of_print_are_those_of_the_keyboard():
    assert syllables_of_line("\u2019Tis strain\u2019d") == syllables_of_line("'Tis strain'd") == (2, 2)


@pytest.mark.parametrize(
    ("line", "worth"),
    [
        ("It blesseth him that gives and him that takes.", 1.0),
        ("To-morrow, and to-morrow, and to-morrow,", 0.8),  # eleven
        ("It droppeth as the gentle rain from heaven", 0.8),
        ("My lord", 0.0),
        ("of the the the", 0.0),
        ("one two three four five six", 0.2),
        ("1616", 0.0),
        (" ".join(["word"] * 20), 0.0),
    ],
)
def test_line_is_worth_its_closeness_to_ten_syllables(line, worth):
    assert metre(line) == pytest.approx(worth)


def test_metre_is_the_mean_over_lines_and_blank_ones_do_not_count():
    assert metre("It blesseth him that gives and him that takes.\n\n  \nMy lord") == 0.5


@pytest.mark.parametrize("verse", VERSES)
def test_verse_has_more_metre_than_the_same_words_in_other_lines(verse):
    own, line, pairs = metre_reward(answers(verse, in_one_line(verse), in_pairs_of_words(verse)))
    assert own > 0.75 and line == 0.0 and pairs < 0.1


@pytest.mark.parametrize("verse", VERSES)
def test_lines_tell_verse_from_prose_from_one_line_and_from_pieces(verse):
    own, prose, line, pairs = lines_reward(
        answers(verse, as_prose(verse), in_one_line(verse), in_pairs_of_words(verse))
    )
    assert own == 1.0 and prose == 0.0 and line == 0.0 and pairs < 0.1


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("", 0.0),
        (" \n ", 0.0),
        ("My lord?", 0.0),
        ("It blesseth him that gives and him that takes.", 0.5),  # one line: half
        ("My lord,\nIt blesseth him that gives and him that takes.", 1.0),  # begins in another's line
        ("My lord,\nYes.", 0.0),  # short ones alone are no verse
        ("My lord,\nNo,\nIt blesseth him that gives and him that takes.", 2 / 3),
        ("'It blesseth him that gives and him that takes.'\nand him that takes and him that gives", 0.5),
        ("x" * 40 + "\n" + "X" * 40, 0.5),
        ("X" * 56 + "\n" + "X" * 55, 0.5),
    ],
)
def test_lines_count_capitals_and_lengths(text, worth):
    assert lines_of_verse(text) == pytest.approx(worth)


@given(st.text())
def test_worth_is_a_share_of_any_text(text):
    for function in (metre, lines_of_verse):
        assert 0.0 <= function(text) <= 1.0


def test_order_of_answers_is_kept():
    worth = metre_reward(answers(PORTIA, "", THESEUS, MACBETH))
    assert worth[1] == 0.0 and worth == [metre(PORTIA), 0.0, metre(THESEUS), metre(MACBETH)]
