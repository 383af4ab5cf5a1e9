"""The index of a server: who may find what in it, and the thread that searches and embeds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ava_core.errors import AvaError, ConfigError
from ava_core.retrieval.augmenting import last_question
from ava_core.retrieval.embedding.embedder import Embedder
from ava_core.retrieval.retriever import Found, Retriever, query_of
from ava_core.serving.http.calls import RETRY_SECONDS
from ava_core.serving.http.errors import HttpError
from ava_core.serving.http.metrics import Metrics
from ava_core.serving.http.protocol import ChatRequest, CompletionRequest, GenerationRequest
from ava_core.serving.http.retrieval_fields import Searching
from ava_core.serving.http.workers import Result, Workers
from ava_core.serving.requests import QueueFull

log = logging.getLogger(__name__)
Given = TypeVar("Given")
EMBEDDED_AT_ONCE = 16
"""Texts after which others that wait for the thread have their turn."""


@dataclass(frozen=True)
class Embedded:
    """Texts as vectors.

    Attributes:
        vectors: (texts, dimension) float32, of unit length.
        tokens: of each text by the embedding's own tokenizer; None: unknown.
    """

    vectors: np.ndarray
    tokens: list[int] | None


class Lookups:
    """An index that requests look things up in.

    One thread at a time may use a retriever. It is a thread of its own, so that a search that hangs, as one whose
    embedding is a server may, holds up neither the parsing of other requests nor their chat templates.

    Args:
        retriever: the open index.
        key_labels: access labels by SHA-256 of the key that has them.
        metrics: of the server.
        waiting: calls that may wait for the thread.
    """

    def __init__(
        self, retriever: Retriever, key_labels: Mapping[str, Collection[str]], metrics: Metrics, waiting: int
    ) -> None:
        self.workers = Workers(1)
        self._retriever, self._key_labels, self._metrics, self._waiting = retriever, key_labels, metrics, waiting

    @property
    def embedder(self) -> Embedder | None:
        """What gives vectors; None: the index is searched by words alone."""
        return self._retriever.embedder

    @property
    def dimension(self) -> int:
        """Of the index's vectors."""
        return self._retriever.index.manifest.dimension

    async def find(
        self, queries: Sequence[str], asked: Searching, top_k: int, *, caller: str, where: str = ""
    ) -> list[list[Found]]:
        """The passages for each query, the best first; none for an empty one.

        Args:
            queries: what is searched for.
            asked: how.
            top_k: passages for each, at most.
            caller: SHA-256 of the caller's key; empty: he has none.
            where: stands before the names of fields in errors.

        Raises:
            HttpError: a label that the caller doesn't have, a mode that the index hasn't, or no query; or the index's
                embedding failed.
            QueueFull: too many wait.
        """
        labels = self._labels(asked.labels, caller, where)
        if asked.mode not in (None, "lexical") and self.embedder is None:
            raise HttpError(
                400,
                f"{where}mode = {asked.mode!r}: this server's index has no vectors: use 'lexical', or leave it out",
                param=f"{where}mode",
            )
        return [await self._search(query, asked, top_k, labels, where) if query else [] for query in queries]

    async def embed(self, texts: Sequence[str], embedder: Embedder) -> Embedded:
        """The vectors of texts; raises as `find`."""

        def some(part: Sequence[str]) -> tuple[np.ndarray, list[int] | None]:
            return embedder.embed(part), embedder.count_tokens(part)

        parts = [
            await self._run(some, texts[first : first + EMBEDDED_AT_ONCE])
            for first in range(0, len(texts), EMBEDDED_AT_ONCE)
        ]
        counts = [count for _, some_counts in parts for count in some_counts or ()]
        return Embedded(np.concatenate([vectors for vectors, _ in parts]), counts or None)

    async def _search(
        self, query: str, asked: Searching, top_k: int, labels: Collection[str], where: str
    ) -> list[Found]:
        def search(text: str) -> list[Found]:
            return self._retriever.search(text, top_k, mode=asked.mode, labels=labels)

        started = time.perf_counter()
        try:
            found = await self._run(search, query)
        except ConfigError as error:
            raise HttpError(400, f"{where}{error}", param=where.rstrip(".") or "query") from error
        self._metrics.retrieval.observe(time.perf_counter() - started)
        return found

    async def _run(self, function: Callable[[Given], Result], given: Given) -> Result:
        if self.workers.waiting >= self._waiting:
            raise QueueFull(self.workers.waiting, RETRY_SECONDS)
        try:
            return await self.workers.run(function, given)
        except ConfigError:
            raise
        except AvaError as error:
            # What stands in parentheses may be another server's words, and those may repeat a query.
            log.warning("serve: the index's embedding failed: %s", str(error).partition(" (")[0])
            raise HttpError(
                502,
                "the embedding of this server's index failed: try again, or use mode 'lexical'",
                code="embedding_failed",
            ) from error

    def _labels(self, wanted: Sequence[str] | None, caller: str, where: str) -> Collection[str]:
        """The labels to search with: those of the caller's key, or the ones among them that he wants."""
        his = self._key_labels.get(caller, ())
        for label in wanted or ():
            if label not in his:
                raise HttpError(
                    403,
                    f"{where}labels: the API key of this request doesn't have {label!r}: leave it out",
                    code="label_not_allowed",
                    param=f"{where}labels",
                )
        return his if wanted is None else wanted


def queries_of(body: GenerationRequest) -> list[str]:
    """What is looked up for a request: the end of each prompt, or of what the user said last.

    Raises:
        HttpError: a prompt is given as token ids.
    """
    if isinstance(body, ChatRequest):
        return [query_of(last_question([message.plain() for message in body.messages]))]
    assert isinstance(body, CompletionRequest)
    if not all(isinstance(prompt, str) for prompt in body.prompt):
        raise HttpError(
            400,
            "retrieval: can't stand beside a prompt of token ids: give the prompt as text, or leave retrieval out",
            param="retrieval",
        )
    return [query_of(prompt) for prompt in body.prompt]
