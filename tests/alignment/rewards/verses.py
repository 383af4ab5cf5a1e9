"""Speeches of the plays that tests judge, and the same words in no form of verse."""

from ava_core.alignment.rewards import Answer

PORTIA = """The quality of mercy is not strain'd,
It droppeth as the gentle rain from heaven
Upon the place beneath: it is twice blest;
It blesseth him that gives and him that takes."""
THESEUS = """The lunatic, the lover and the poet
Are of imagination all compact:
One sees more devils than vast hell can hold,
That is, the madman: the lover, all as frantic,
Sees Helen's beauty in a brow of Egypt."""
MACBETH = """She should have died hereafter;
There would have been a time for such a word.
To-morrow, and to-morrow, and to-morrow,
Creeps in this petty pace from day to day
To the last syllable of recorded time."""
VERSES = [PORTIA, THESEUS, MACBETH]


def in_one_line(verse: str) -> str:
    return verse.replace("\n", " ")


def in_pairs_of_words(verse: str) -> str:
    words = verse.split()
    return "\n".join(" ".join(words[start : start + 2]) for start in range(0, len(words), 2))


def as_prose(verse: str) -> str:
    """Lines as long as verse has them, broken anywhere and without capitals."""
    words = verse.lower().split()
    return "\n".join(" ".join(words[start : start + 8]) for start in range(0, len(words), 8))


def answers(*texts: str, **fields) -> list[Answer]:
    return [Answer((), text, **fields) for text in texts]
