"""What the rewards of verse say of the plays' replies, and of the same words without their form.

Usage: python -m tests.alignment.rewards.corpus [data/raw/shakespeare]
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

from ava_core.alignment.plays import dialogues
from ava_core.alignment.rewards.reward_set import RewardSet
from ava_core.config.rewards import RewardEntry
from tests.alignment.rewards.verses import answers, in_one_line

NAMES = ("metre", "lines", "speech")
SPEECHES = 1_000


def main(folder: Path) -> None:
    """Print the means, one row for each kind of text."""
    texts = [
        message.content
        for path in sorted(folder.rglob("*.md"))
        for conversation in dialogues(path.read_text(encoding="utf-8"), path.name)
        for message in conversation.messages
        if message.role == "assistant"
    ]
    rng = random.Random(0)
    long = [text for text in texts if text.count("\n") >= 3]
    verse = rng.sample([text for text in long if all(map(_begins_with_capital, text.split("\n")))], SPEECHES)
    prose = [text for text in long if sum(not _begins_with_capital(line) for line in text.split("\n")) >= 2]
    rewards = RewardSet.from_config([RewardEntry(name=name) for name in NAMES])
    changes: dict[str, Callable[[str], str]] = {
        "verse": str,
        "in one line": in_one_line,
        "broken at random": lambda text: _broken(text, rng),
        "words shuffled": lambda text: _shuffled(text, rng),
        "letters at random": lambda text: _letters(text, rng),
        "first line repeated": lambda text: "\n".join([text.split("\n")[0]] * len(text.split("\n"))),
        "with a speaker's name": lambda text: text.replace("\n", "\nROMEO\n", 1),
    }
    rows = {
        "all replies": texts,
        "prose": prose,
        **{name: list(map(change, verse)) for name, change in changes.items()},
    }
    print(f"{'':24}{'texts':>8}" + "".join(f"{name:>8}" for name in NAMES))
    for name, row in rows.items():
        parts = rewards.score(answers(*row)).parts.values()
        print(f"{name:24}{len(row):8}" + "".join(f"{sum(part) / len(row):8.3f}" for part in parts))


def _begins_with_capital(line: str) -> bool:
    return line.lstrip("'\"(")[:1].isupper()


def _broken(text: str, rng: random.Random) -> str:
    """The same words in as many lines, of any lengths."""
    words = text.split()
    cuts = sorted(rng.sample(range(1, len(words)), text.count("\n")))
    return "\n".join(" ".join(words[start:end]) for start, end in zip([0, *cuts], [*cuts, len(words)], strict=True))


def _shuffled(text: str, rng: random.Random) -> str:
    """The same words in another order, as many in each line as before."""
    words = text.split()
    rng.shuffle(words)
    return "\n".join(" ".join(words.pop() for _ in line.split()) for line in text.split("\n"))


def _letters(text: str, rng: random.Random) -> str:
    return "".join(letter if letter.isspace() else chr(ord("a") + rng.randrange(26)) for letter in text)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/raw/shakespeare"))
