"""Conversations from plays: who speaks, what is no speech, and what a third person ends."""

import pytest

from ava_core.alignment.plays import dialogues, scenes

PLAY = """# A Play

## ACT I

### SCENE I. Elsinore.

_Enter BERNARDO and FRANCISCO_

**BERNARDO**
Who's there?

**FRANCISCO**
Nay, answer me: _Aside_ stand,
and unfold yourself.

**BERNARDO**
Long live the king!

_Exit a ghost_

**FRANCISCO**
Bernardo?

**HORATIO**
Friends to this ground.

### SCENE II. Another room.

**GHOST**
Mark me.
"""


def names(conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


def test_speeches_are_without_directions_and_by_scene():
    first, second = scenes(PLAY)
    assert [speech.speaker for speech in first] == ["BERNARDO", "FRANCISCO", "BERNARDO", "FRANCISCO", "HORATIO"]
    assert first[1].text == "Nay, answer me:  stand,\nand unfold yourself."
    assert first[2].text == "Long live the king!"
    assert [speech.text for speech in second] == ["Mark me."]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("_Enter, from one side, OBERON; from the other,\nTITANIA, with hers_\n\nGo.", "Go."),
        ("__\\[Awaking]_  \nWhat angel?", "What angel?"),
        ("__\\[Awaking, and\nrising]_  \nWhat angel?", "What angel?"),
        ("[Within]_  \nWho's there?", "Who's there?"),
        ("Farewell.  \n*[He draws\nhis sword.]*", "Farewell."),
        ("_Burthen _\\[dispersedly, within_\n\nThe watch-dogs bark!", "The watch-dogs bark!"),
        ("'John Falstaff, knight,'\\--every man", "'John Falstaff, knight,'--every man"),
        ("Go _hence\n\nand_ come.", "Go _hence\nand_ come."),
    ],
)
def test_direction_over_several_lines_is_no_speech_and_ends_with_its_paragraph(written, said):
    [[speech]] = scenes(f"**A**  \n{written}\n")
    assert speech.text == said


def test_two_who_alternate_are_one_conversation_and_a_third_one_begins_another():
    first, second = dialogues(PLAY, "play.md")
    assert names(first)[0] == ("system", "FRANCISCO")
    assert [role for role, _ in names(first)] == ["system", "user", "assistant", "user", "assistant"]
    assert names(second) == [("system", "HORATIO"), ("user", "Bernardo?"), ("assistant", "Friends to this ground.")]
    assert first.document == "play.md" and first.name != second.name


@pytest.mark.parametrize(
    ("speakers", "runs"),
    [
        ("A", []),
        ("AB", ["AB"]),
        ("ABA", ["AB"]),
        ("ABC", ["AB", "BC"]),
        ("ABABCBCA", ["ABAB", "BCBC", "CA"]),
        ("AABBA", ["AB"]),
    ],
)
def test_runs_hold_whole_exchanges(speakers, runs):
    text = "\n\n".join(f"**{speaker}**  \n{speaker.lower()}{number}" for number, speaker in enumerate(speakers))
    found = ["".join(m.content[0].upper() for m in item.messages[1:]) for item in dialogues(text, "play")]
    assert found == runs
