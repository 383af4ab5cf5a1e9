"""A server as embedding: OpenAI's /v1/embeddings (its API reference, "Create embeddings")."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ava_core.config.embedding import HttpEmbedding
from ava_core.errors import AvaError, first_line, shorten
from ava_core.retrieval.embedding.embedder import unit

TRIES = 3
RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
"""Answers that may be others a moment later."""
PAUSE_SECONDS = 1.0


class HttpServer:
    """As `Embedder`."""

    max_tokens: int | None = None

    def __init__(self, config: HttpEmbedding) -> None:
        self._config = config
        self._dimension = 0

    @property
    def identity(self) -> str:
        return f"http:{self._config.model}"

    @property
    def dimension(self) -> int:
        """As the server's first answer has it."""
        if not self._dimension:
            self._dimension = self.embed(["dimension"]).shape[1]
        return self._dimension

    def count_tokens(self, texts: Sequence[str]) -> list[int] | None:
        return None

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """As `Embedder.embed`.

        Raises:
            AvaError: the server doesn't answer, refuses, or answers with other vectors than were asked for.
        """
        size = self._config.batch
        parts = [self._ask(list(texts[first : first + size])) for first in range(0, len(texts), size)]
        if len({part.shape[1] for part in parts}) > 1:
            raise self._fault("answers with vectors of several lengths: give another model")
        return unit(np.concatenate(parts)) if parts else np.empty((0, self.dimension), np.float32)

    def _ask(self, texts: list[str]) -> np.ndarray:
        import requests

        key = os.environ.get(self._config.key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        body = {"model": self._config.model, "input": texts, "encoding_format": "float"}
        address = f"{self._config.url.rstrip('/')}/embeddings"
        for attempt in range(1, TRIES + 1):
            try:
                answer = requests.post(address, json=body, headers=headers, timeout=self._config.timeout_seconds)
            except requests.RequestException as error:
                if attempt == TRIES:
                    what = f"doesn't answer ({type(error).__name__}): start it or mend the address"
                    raise self._fault(what) from error
            else:
                if answer.ok:
                    return self._vectors(answer, len(texts))
                if attempt == TRIES or answer.status_code not in RETRIED:
                    said = shorten(answer.text.strip())
                    raise self._fault(f"answered {answer.status_code} ({said}): look at the server's log")
            time.sleep(PAUSE_SECONDS * attempt)
        raise AssertionError("the last try returns or raises")

    def _vectors(self, answer: Any, count: int) -> np.ndarray:
        try:
            rows = sorted(answer.json()["data"], key=lambda row: row["index"])
            vectors = np.array([row["embedding"] for row in rows], np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise self._fault(f"answers with something else than embeddings ({first_line(error)})") from error
        if vectors.ndim != 2 or len(vectors) != count or not np.isfinite(vectors).all():
            raise self._fault(f"answered {count} texts with an array of shape {list(vectors.shape)}, or not finite")
        return vectors

    def _fault(self, what: str) -> AvaError:
        return AvaError(f"retrieval.http.url = {self._config.url}: {what}")
