"""Indexes of a few passages that servers of the tests look things up in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ava_core.retrieval.embedding.embedder import unit
from ava_core.retrieval.folder import Index
from ava_core.retrieval.passage import Passage
from ava_core.retrieval.retriever import Retriever
from tests.retrieval.made import build

CONTEXT = 1000
"""Tokens of the context that the scripted engine is given, so that passages fit."""
TEXTS = (
    "The ghost walks on the walls at midnight.",
    "Three witches boil a newt.",
    "The king divides his land.",
    "A handkerchief is lost.",
)


class Letters:
    """As `Embedder`: how often each letter stands in a text. It reads 60 characters, a token each."""

    identity, dimension, max_tokens = "letters:1", 26, 60

    def count_tokens(self, texts: Sequence[str]) -> list[int] | None:
        return [len(text) for text in texts]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        counted = [[text[:60].lower().count(chr(97 + letter)) for letter in range(26)] for text in texts]
        return unit(np.array(counted, np.float32))


def passage(text: str, number: int, label: str = "") -> Passage:
    return Passage(text, f"play{number}.md", 10, 10 + len(text), "ACT I", f"{number:064x}", label)


def made_of(
    folder: Path, texts: Sequence[str], labels: Sequence[str] = (), embedder: Letters | None = None
) -> Retriever:
    """A retriever of passages with these texts, and with these labels if there are some."""
    given = [passage(text, at, labels[at] if labels else "") for at, text in enumerate(texts)]
    vectors = embedder.embed([one.searched for one in given]) if embedder else None
    build(folder, given, vectors, settings={"embedding": "none", "http": None})
    return Retriever(Index.open(folder), embedder)
