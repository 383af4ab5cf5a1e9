"""The plays as conversations: who speaks is the system's message, the cue the user's, the reply the assistant's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ava_core.alignment.conversation import Conversation, Message

SPEAKER = re.compile(r"\*\*(.+?)\*\*\s*")
"""A line that names who speaks from there on."""
SCENE = re.compile(r"#+\s")
DIRECTION = re.compile(
    r"[_*]*\\?\[(?:(?!\n\s*\n)[^\]])*\][_*]*"  # in brackets, however it is emphasised
    r"|_(?:(?!\n\s*\n)[^_])+_"
    r"|\*(?:(?!\n\s*\n)[^*])+\*"
    r"|\\?\[.*"  # a bracket that nobody closes
)
"""What happens on the stage, which nobody says: as long as its paragraph, over several lines."""
ESCAPED = re.compile(r"\\([^\w\s])")
"""A character that would be Markdown without the backslash before it."""


@dataclass(frozen=True, slots=True)
class Speech:
    """What one person says before another speaks."""

    speaker: str
    text: str


def scenes(markdown: str) -> Iterator[list[Speech]]:
    """The speeches of each scene of a play, in their order."""
    speaker, lines, speeches = "", list[str](), list[Speech]()

    def finished() -> None:
        said = (line.strip() for line in _without_directions("\n".join(lines)).splitlines())
        text = "\n".join(line for line in said if line)
        if speaker and text:
            speeches.append(Speech(speaker, text))
        lines.clear()

    for line in markdown.splitlines():
        named = SPEAKER.fullmatch(line.strip())
        if not named and not SCENE.match(line):
            lines.append(line)
            continue
        finished()
        speaker = named[1].strip() if named else ""
        if not named and speeches:
            yield speeches
            speeches = []
    finished()
    if speeches:
        yield speeches


def _without_directions(markdown: str) -> str:
    return ESCAPED.sub(r"\1", DIRECTION.sub("", markdown))


def dialogues(markdown: str, name: str) -> Iterator[Conversation]:
    """Two people of a play who speak in turn: as long as no third one does, they are one conversation.

    Args:
        markdown: the play.
        name: of the document it is.
    """
    number = 0
    for speeches in scenes(markdown):
        for run in _runs(speeches):
            number += 1
            turns = [
                Message("assistant" if index % 2 else "user", speech.text)
                for index, speech in enumerate(run[: len(run) // 2 * 2])
            ]
            yield Conversation(f"{name}#{number}", (Message("system", run[1].speaker), *turns), name)


def _runs(speeches: list[Speech]) -> Iterator[list[Speech]]:
    """Longest runs in which two people alternate; what one says in two speeches at once is one speech."""
    whole: list[Speech] = []
    for speech in speeches:
        if whole and whole[-1].speaker == speech.speaker:
            whole[-1] = Speech(speech.speaker, f"{whole[-1].text}\n{speech.text}")
        else:
            whole.append(speech)
    start = 0
    for end in range(2, len(whole) + 1):
        if end == len(whole) or whole[end].speaker != whole[end - 2].speaker:
            if end - start >= 2:
                yield whole[start:end]
            start = end - 1  # the last speech is the cue of the next conversation
