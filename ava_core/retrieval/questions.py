"""Questions whose answers stand in an index: rows of a file, or lines of its own passages with words left out.

A question of the second kind is a line of which two words in five are dropped; its passage has to be found. Where a
document has stage directions, every fourth question is one, and any passage of its document will do.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_core.errors import AvaError
from ava_core.files import parse_json
from ava_core.retrieval.passage import Passage
from ava_core.retrieval.passage_store import PassageStore

DROPPED = 0.4
"""Part of a line's words that a question leaves out."""
FEWEST_WORDS = 6
DIRECTION = re.compile(r"(?:Enter|Re-enter|Exit|Exeunt|Flourish|Alarum)\b.{12,}")
DIRECTION_EVERY = 4
MAX_FAULTS = 20


@dataclass(frozen=True)
class Question:
    """Attributes:
    question: what is searched for.
    answer: what stands there; empty where nobody says.
    document: the document that has it.
    start: first character of the answer's place in the document; None: anywhere in it.
    end: behind its last character.
    """

    question: str
    answer: str
    document: str
    start: int | None = None
    end: int | None = None

    def is_answered_by(self, passage: Passage) -> bool:
        """Whether a passage is of the document and, where a place is known, has a part of it."""
        if passage.document != self.document:
            return False
        return self.start is None or self.end is None or (passage.start < self.end and self.start < passage.end)

    def to_json(self) -> dict[str, Any]:
        """As a file of questions has it."""
        place = {"document": self.document, "start": self.start, "end": self.end}
        source = {key: value for key, value in place.items() if value is not None}
        return {"question": self.question, "answer": self.answer, "source": source}


def read_questions(path: Path) -> list[Question]:
    """The questions of a file of JSON lines: `question`, `answer` (may be missing) and `source`.

    A source is a document's name, or an object with `document` and, for a place in it, `start` and `end`.

    Raises:
        AvaError: the file can't be read, is empty, or rows are no questions; up to 20 are named.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise AvaError(f"evaluate.retrieval.questions = {path}: {error.strerror or error}") from error
    questions, faults = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            found = _row(line)
            if isinstance(found, str):
                faults.append(f"{path}, line {number}: {found}")
            else:
                questions.append(found)
    if faults:
        raise AvaError(*faults[:MAX_FAULTS])
    if not questions:
        raise AvaError(f"evaluate.retrieval.questions = {path}: holds no question: give another file")
    return questions


def _row(line: bytes) -> Question | str:
    """A question, or what is wrong with the row."""
    try:
        row = parse_json(line)
    except ValueError:
        return "is no JSON"
    source = row.get("source") if isinstance(row, dict) else None
    source = {"document": source} if isinstance(source, str) else source
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not row["question"].strip():
        return "question: must be a text"
    if not isinstance(source, dict) or not isinstance(source.get("document"), str):
        return "source: must be a document's name, or {document, start, end}"
    start, end = source.get("start"), source.get("end")
    if (start, end) != (None, None) and not (type(start) is type(end) is int and start < end):
        return f"source: start = {start}, end = {end}: must be two numbers, the first one smaller"
    return Question(row["question"], str(row.get("answer") or ""), source["document"], start, end)


def make_questions(passages: Sequence[Passage] | PassageStore, count: int, seed: int) -> list[Question]:
    """Questions about passages, from as many different ones as there are, in an order that the seed decides.

    Args:
        passages: of an index.
        count: questions, at most.
        seed: decides which passages, lines and words.
    """
    drawn = random.Random(seed)  # noqa: S311
    order = drawn.sample(range(len(passages)), min(len(passages), 8 * count))
    questions: list[Question] = []
    for number in order:
        if len(questions) == count:
            break
        passage = passages[number]
        wants_direction = len(questions) % DIRECTION_EVERY == DIRECTION_EVERY - 1
        made = _direction(passage, drawn) if wants_direction else None
        made = made or _masked_line(passage, drawn)
        if made is not None:
            questions.append(made)
    return questions


def _direction(passage: Passage, drawn: random.Random) -> Question | None:
    lines = [line for _, line in _lines(passage.text) if DIRECTION.fullmatch(line)]
    return Question(drawn.choice(lines), passage.document, passage.document) if lines else None


def _masked_line(passage: Passage, drawn: random.Random) -> Question | None:
    lines = [(start, line) for start, line in _lines(passage.text) if len(line.split()) >= FEWEST_WORDS]
    if not lines:
        return None
    start, line = drawn.choice(lines)
    words = line.split()
    left_out = set(drawn.sample(range(len(words)), round(DROPPED * len(words))))
    question = " ".join(word for number, word in enumerate(words) if number not in left_out)
    first = passage.start + start
    return Question(question, line, passage.document, first, first + len(line))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Each line without blanks around it, and where it begins."""
    for found in re.finditer(r"[^\n]+", text):
        line = found[0].strip()
        yield found.start() + found[0].index(line), line
