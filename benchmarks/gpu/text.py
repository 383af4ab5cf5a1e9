"""What the check trains on: the embedded corpus where it is, else a made-up text that can be learnt."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from ava_core.config import resolve
from ava_core.data.corpora import SHAKESPEARE
from ava_core.errors import AvaError
from benchmarks.corpora import shards_of_files
from benchmarks.gpu.plan import Plan

FILES = 32
WORDS = {True: 3_000, False: 40_000}
"""Of the made-up language, in small and else; in each file so many words."""
SYLLABLES = [consonant + vowel for consonant in "bdfghklmnprstvz" for vowel in "aeiou"]
FOLLOWERS = 4
"""Words that may follow a word, most of the time: what there is to learn beside how frequent each is."""


def make_shards(plan: Plan) -> str:
    """Write `plan.shards` if they aren't there. Returns what the text is."""
    try:
        files, kind = SHAKESPEARE.verify(plan.data / SHAKESPEARE.name), "the embedded corpus"
    except (AvaError, OSError):
        files, kind = _write_files(plan), "made up"
    if not plan.shards.exists():
        vocab_size = resolve(overrides=[f"preset={plan.preset}"]).config.tokenizer.vocab_size
        shards_of_files(files, vocab_size, plan.shards)
    return kind


def _write_files(plan: Plan) -> list[Path]:
    folder = plan.folder / "text"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{index:02}.txt" for index in range(FILES)]
    for path, text in zip(paths, made_up(WORDS[plan.tiny]), strict=False):
        path.write_text(text, encoding="utf-8")
    return paths


def made_up(words: int) -> Iterator[str]:
    """Texts of a language of `words` words, as many words each, without end; always the same ones."""
    drawn = random.Random(0)  # noqa: S311  # no secret
    lexicon = ["".join(drawn.choices(SYLLABLES, k=drawn.randint(1, 4))) for _ in range(words)]
    weights = [1 / (rank + 10) for rank in range(words)]
    followers = {word: drawn.choices(lexicon, weights, k=FOLLOWERS) for word in lexicon}
    while True:
        word, text = lexicon[0], []
        for word_drawn in drawn.choices(lexicon, weights, k=words):
            word = drawn.choice(followers[word]) if drawn.random() < 0.8 else word_drawn
            text.append(f"{word}.\n" if drawn.random() < 0.1 else f"{word} ")
        yield "".join(text)
