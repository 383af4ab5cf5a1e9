"""The form of a reply: whose it is, how it ends, and whether it repeats itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ava_core.alignment.rewards.speech import distinct_share, form, reward
from tests.alignment.rewards.verses import MACBETH, PORTIA, VERSES, answers


@pytest.mark.parametrize("verse", VERSES)
def test_speech_of_the_author_is_worth_all_and_one_that_was_cut_half(verse):
    assert reward(answers(verse)) == [1.0]
    assert reward(answers(verse, ended=False)) == [0.5]


@pytest.mark.parametrize(
    "line",
    ["ROMEO", "LADY MACBETH.", "Romeo:", "First Murderer:", "ROMEO: It is the east.", "ROMEO. It is the east.",
     "Enter ROMEO and JULIET", "Re-enter GHOST", "Exit", "Exeunt", "_Aside_", "[Aside]", "**ROMEO**", "# ACT II",
     "<|end|>"],
)  # fmt: skip
def test_heading_or_direction_in_a_speech_takes_half(line):
    first, *rest = PORTIA.splitlines()
    assert form("\n".join([first, line, *rest]), ended=True) == 0.5
    assert form(f"{PORTIA}\n{line}", ended=True) == 0.5


@pytest.mark.parametrize(
    "line", ["O!", "I,", "O, I die, Horatio;", "Enter our gates; dispose of us and ours;", "So methinks:", "Thus much:"]
)
def test_lines_of_speeches_that_look_like_them_are_none(line):
    assert form(f"{line}\n{PORTIA}", ended=True) == 1.0


def test_repetition_costs_its_share():
    assert distinct_share("to be or not") == distinct_share("no") == distinct_share(MACBETH) == 1.0
    assert distinct_share("no more no more no more no more") == 2 / 5
    assert distinct_share("") == distinct_share("... 'tis"[:3]) == 0.0
    looped = "\n".join([PORTIA.splitlines()[0]] * 8)
    assert reward(answers(looped))[0] < 0.2 < reward(answers(PORTIA))[0]


def test_case_and_signs_hide_no_repetition():
    assert distinct_share("No more, no more! NO MORE: no more. No more") == distinct_share("no more " * 5)


@given(st.text(), st.booleans())
def test_worth_is_a_share_of_any_text(text, ended):
    assert 0.0 <= reward(answers(text, ended=ended))[0] <= 1.0
