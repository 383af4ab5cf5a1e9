"""Questions to passages: an open index with the embedding that it was built with."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_core.config.embedding import HttpEmbedding
from ava_core.errors import AvaError, ConfigError
from ava_core.retrieval.embedding.embedder import Embedder
from ava_core.retrieval.embedding.opening import open_embedder
from ava_core.retrieval.folder import Index, Mode
from ava_core.retrieval.fusion import Hit
from ava_core.retrieval.passage import Passage

MAX_QUERY = 8192
"""Characters of a query. More are no question, and cost time."""
MAX_RESULTS = 1000


@dataclass(frozen=True, slots=True)
class Found:
    """A passage that a query found, and where it stood.

    Attributes:
        number: of the passage in the index, from 0.
        passage: the passage.
        hit: its ranks and its score.
    """

    number: int
    passage: Passage
    hit: Hit

    def as_json(self, *, text: bool = True) -> dict[str, Any]:
        """As `ava search --json` and the server show it: where the passage is from, and how it was found."""
        passage, hit = self.passage, self.hit
        shown: dict[str, Any] = {
            "id": self.number,
            "document": passage.document,
            "heading": passage.heading,
            "start": passage.start,
            "end": passage.end,
            "source_sha256": passage.source_digest,
            "score": hit.score,
            "lexical_rank": hit.lexical_rank,
            "dense_rank": hit.dense_rank,
        }
        return {**shown, "text": passage.text} if text else shown


class Retriever:
    """Finds passages. One thread may use it at a time.

    Args:
        index: an open index.
        embedder: of the index's vectors; None: only lexical search can be asked for.
    """

    def __init__(self, index: Index, embedder: Embedder | None) -> None:
        self.index, self.embedder = index, embedder

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        mode: Mode | None = None,
        model: Path | None = None,
        threads: int = 0,
        verify: bool = False,
    ) -> Retriever:
        """Open an index with what its vectors were made with.

        Args:
            folder: output of `ava index`.
            mode: the only one that will be asked for; `lexical` needs no embedding.
            model: the model that an index of `retrieval.embedding = model` was built with.
            threads: of the embedding.
            verify: look at every byte of the index, as who uses it for long should.

        Raises:
            ConfigError: there is no index, or its embedding needs a model and there is none.
            AvaError: the embedding can't be had, or isn't the one that the index was built with.
            IntegrityError: a file of the index is missing, cut or changed.
        """
        index = Index.open(folder, verify=verify)
        name, http = _embedding_of(index, folder)
        if mode == "lexical" and model is None:
            return cls(index, None)
        embedder = open_embedder(name, http, model, threads)
        if embedder is not None and embedder.identity != index.manifest.embedding:
            raise AvaError(
                f"{folder}: was built with the embedding {index.manifest.embedding}, this one is {embedder.identity}:"
                " give the model or package of then, or build the index anew"
            )
        return cls(index, embedder)

    @property
    def default_mode(self) -> Mode:
        """What is searched where nobody says: both ways, if the index has both."""
        return "lexical" if self.embedder is None else "hybrid"

    def search(self, query: str, top_k: int, *, mode: Mode | None = None, labels: Collection[str] = ()) -> list[Found]:
        """The passages that fit a query best, the best first.

        Args:
            query: a question, or words.
            top_k: at most as many.
            mode: lexical, dense or hybrid; None: `default_mode`.
            labels: access labels of who asks. Other passages are left out before anything is ranked.

        Raises:
            ConfigError: no query, one that is too long or no valid Unicode, or a number of passages out of range.
            AvaError: a mode that the index has no vectors for, or the embedding's server fails.
        """
        require_query(query)
        if not 1 <= top_k <= MAX_RESULTS:
            raise ConfigError(f"top_k = {top_k}: must be from 1 to {MAX_RESULTS}")
        mode = mode or self.default_mode
        vector = None
        if mode != "lexical" and self.embedder is not None:
            vector = self.embedder.embed([query])[0]
        hits = self.index.search(query, vector, top_k, mode=mode, labels=labels)
        return [Found(hit.passage, self.index.passages[hit.passage], hit) for hit in hits]


def require_query(query: str) -> None:
    """Refuse what is no query.

    Raises:
        ConfigError: it is empty, longer than MAX_QUERY, or no valid Unicode.
    """
    if not query.strip():
        raise ConfigError("query: is empty: ask something")
    if len(query) > MAX_QUERY:
        raise ConfigError(f"query: has {len(query):,} characters: at most {MAX_QUERY:,} are searched for: shorten it")
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"query: isn't valid Unicode at character {error.start}") from error


def query_of(prompt: str) -> str:
    """What to search for, to go on with a prompt: its end, where a question stands; empty if there is nothing."""
    return prompt.strip()[-MAX_QUERY // 8 :]


def _embedding_of(index: Index, folder: Path) -> tuple[Any, HttpEmbedding]:
    """The name of the embedding that the index was built with, and its server."""
    settings = index.manifest.settings
    try:
        http = HttpEmbedding(**settings["http"]) if settings.get("http") else HttpEmbedding()
        return settings["embedding"], http
    except (KeyError, ValueError) as error:
        raise AvaError(f"{folder}: doesn't say which embedding it was built with: build it anew") from error
