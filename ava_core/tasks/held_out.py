"""Two tasks that small models can feel, made from held-out text with a seed.

`swapped_words`: which is the line as it was written, and which has two words swapped (chance: 0.5).
`next_line`: which of four lines comes next (chance: 0.25); the others, of about the same length, are from elsewhere.

Before each stand the lines that came before it in the document. Text without a structure of lines is taken by
sentences, and in code what is swapped are identifiers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from typing import Any, Literal

from ava_core.config.tasks import SWAPPED_WORDS
from ava_core.errors import ConfigError

Form = Literal["lines", "sentences", "code"]
ITEMS = 500
"""Questions of a task that sets no limit."""
FEWEST_ITEMS = 20
"""With fewer, a task tells nothing: its error bar is wider than 0.1."""
CONTEXT_CHARACTERS = 400
"""Of whole lines before a question, at most: about half of the default training context."""
UNIT_CHARACTERS = (15, 300)
"""Least and most of a line that is asked about."""
LONGEST_LINE = 160
"""Characters of a middling line from which lines are taken for paragraphs."""
CANDIDATES = 12
"""Lines drawn at random, of which the three nearest in length become the wrong answers."""
WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
IDENTIFIER = re.compile(r"[^\W\d]\w*")
SENTENCE = re.compile(r"\S.*?[.!?…][\"'\u201d\u2019)\]]*(?=\s|$)", re.DOTALL)
LINE = re.compile(r"[^\n]*\S[^\n]*")
CODE = re.compile(r"[;{}]\s*$|\w\(|\w\.\w+\(|[^=<>!]=[^=]|->|=>|::|^\s*(import|from|def|class|return|#include|//)\b")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question.

    Attributes:
        context: what comes before, with the white space before the answer.
        choices: the possible answers.
        label: index of the right one.
    """

    context: str
    choices: list[str]
    label: int


@dataclass(frozen=True, kw_only=True)
class HeldOutTask:
    """A task and what it was made from.

    Attributes:
        name: one of `ava_core.config.tasks.BUILT_IN`.
        form: what a line was taken to be.
        items: its questions, in random order: the first ones are a fair sample of them.
    """

    name: str
    form: Form
    items: list[Item]

    def rows(self) -> list[dict[str, Any]]:
        """The questions, as JSON takes them."""
        return [asdict(item) for item in self.items]


def make_task(
    name: str, documents: Sequence[str], *, seed: int, count: int | None = None, where: str = "evaluate.tasks"
) -> HeldOutTask:
    """Make a task of the documents of a split: the same questions for the same arguments.

    Args:
        name: one of `ava_core.config.tasks.BUILT_IN`.
        documents: the split's texts.
        seed: chooses the questions and their wrong answers.
        count: questions at most; `ITEMS` by default. A smaller number gives the first ones of a larger.
        where: what messages call the list that the task is in.

    Raises:
        ConfigError: the split has room for less than `FEWEST_ITEMS`.
    """
    form = form_of(documents)
    spots = [spot for document in documents for spot in _spots(document, form)]
    draw = random.Random(f"{seed} {name}")  # noqa: S311  no secret
    draw.shuffle(spots)
    make = _swapped if name == SWAPPED_WORDS else _followed
    items = make(spots, draw, form, ITEMS if count is None else count)
    if len(items) < min(FEWEST_ITEMS, count or FEWEST_ITEMS):
        raise ConfigError(
            f"{where}: {name}: the held-out split has room for {len(items)} questions, {FEWEST_ITEMS} are the"
            " fewest: prepare more text, give the split a larger share (data.split), or leave the task out"
        )
    return HeldOutTask(name=name, form=form, items=items)


def form_of(documents: Sequence[str]) -> Form:
    """Whether a text has lines (verse, dialogue, lists), is code, or is prose whose lines mean nothing."""
    lines = [line for document in documents for line in document.split("\n") if line.strip()]
    if not lines:
        return "sentences"
    lengths = sorted(map(len, lines))
    if sum(1 for line in lines if CODE.search(line)) > 0.4 * len(lines) and lengths[len(lengths) // 2] < LONGEST_LINE:
        return "code"
    wrapped = sum(1 for line in lines if re.search(r"[^\W\d_,;-]$", line.rstrip()) or line.rstrip().endswith(","))
    if lengths[len(lengths) // 2] >= LONGEST_LINE or _is_wrapped(lines, wrapped):
        return "sentences"
    return "lines"


def _is_wrapped(lines: list[str], open_ended: int) -> bool:
    """Prose that was wrapped at a margin: most lines end amid a sentence, near the longest line, and go on in lower
    case; verse goes on in a capital."""
    pairs = list(pairwise(lines))
    lower = sum(1 for _, line in pairs if line.lstrip()[:1].islower())
    return open_ended > 0.5 * len(lines) and lower > 0.4 * max(len(pairs), 1)


@dataclass(frozen=True, slots=True)
class _Spot:
    document: str
    start: int
    end: int
    context: int

    @property
    def unit(self) -> str:
        return self.document[self.start : self.end]

    @property
    def before(self) -> str:
        return self.document[self.context : self.start]


def _spots(document: str, form: Form) -> list[_Spot]:
    """The lines of a document that have lines before them, with as many of those as the context has room for."""
    pattern = SENTENCE if form == "sentences" else LINE
    spans = [match.span() for match in pattern.finditer(document)]
    spots, first = [], 0
    for index, (start, end) in enumerate(spans):
        while first < index and start - spans[first][0] > CONTEXT_CHARACTERS:
            first += 1
        if (
            first < index
            and UNIT_CHARACTERS[0] <= end - start <= UNIT_CHARACTERS[1]
            and _words(document[start:end], form)
        ):
            spots.append(_Spot(document, start, end, spans[first][0]))
    return spots


def _words(unit: str, form: Form) -> list[re.Match[str]]:
    """What may be swapped: none where there are too few."""
    found = list((IDENTIFIER if form == "code" else WORD).finditer(unit))
    return found if len(found) >= (2 if form == "code" else 4) else []


def _swapped(spots: list[_Spot], draw: random.Random, form: Form, count: int) -> list[Item]:
    items: list[Item] = []
    for spot in spots:
        if len(items) == count:
            break
        words = _words(spot.unit, form)
        pairs = [(a, b) for a, b in combinations(words, 2) if a.group().casefold() != b.group().casefold()]
        if not pairs:
            continue
        a, b = draw.choice(pairs)
        unit = spot.unit
        wrong = unit[: a.start()] + b.group() + unit[a.end() : b.start()] + a.group() + unit[b.end() :]
        items.append(_item(spot, [wrong], draw))
    return items


def _followed(spots: list[_Spot], draw: random.Random, form: Form, count: int) -> list[Item]:
    items: list[Item] = []
    for spot in spots:
        if len(items) == count:
            break
        others = {
            other.unit
            for other in draw.sample(spots, min(CANDIDATES, len(spots)))
            if other.unit != spot.unit and other.unit not in spot.before
        }
        near = sorted(others, key=lambda unit: (abs(len(unit) - len(spot.unit)), unit))[:3]
        if len(near) == 3:
            items.append(_item(spot, near, draw))
    return items


def _item(spot: _Spot, wrong: list[str], draw: random.Random) -> Item:
    label = draw.randrange(len(wrong) + 1)
    return Item(context=spot.before, choices=[*wrong[:label], spot.unit, *wrong[label:]], label=label)
