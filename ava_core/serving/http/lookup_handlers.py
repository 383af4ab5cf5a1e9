"""The paths of an index: /v1/search, and OpenAI's /v1/embeddings by what the index was embedded with."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from ava_core.generation.prompts import encode_text
from ava_core.retrieval.embedding.embedder import Embedder
from ava_core.serving.http.admission import CALLER
from ava_core.serving.http.bodies import Body, parse
from ava_core.serving.http.calls import Clock, unless_it_leaves
from ava_core.serving.http.errors import HttpError
from ava_core.serving.http.handlers import SHOWN_NAME, Handlers
from ava_core.serving.http.lookups import Embedded, Lookups
from ava_core.serving.http.middleware import Record
from ava_core.serving.http.retrieval_fields import EmbeddingRequest, SearchRequest


class LookupHandlers:
    """The handlers of these paths; bodies, threads and limits are those of the others.

    Args:
        server: the other handlers.
        lookups: the index; None: there is none, and the paths say so.
    """

    def __init__(self, server: Handlers, lookups: Lookups | None) -> None:
        self.server, self._lookups = server, lookups

    async def search(self, http: HttpRequest) -> Response:
        """POST /v1/search."""
        lookups = self._index()
        data, clock = await self.server.intake.receive(http, self.server.workers, lookups.workers)
        caller = getattr(http.state, CALLER, "")
        return await unless_it_leaves(http, self._search(data, clock, lookups, caller))

    async def embeddings(self, http: HttpRequest) -> Response:
        """POST /v1/embeddings."""
        lookups = self._index()
        if lookups.embedder is None:
            raise HttpError(
                404,
                "/v1/embeddings: this server's index has no vectors, so no embedding: start it with one that has",
                code="no_embedding",
            )
        data, clock = await self.server.intake.receive(http, self.server.workers, lookups.workers)
        return await unless_it_leaves(http, self._embed(data, clock, lookups, lookups.embedder, http.state.record))

    def _index(self) -> Lookups:
        if self._lookups is None:
            raise HttpError(404, "this server has no index: start it with --index", code="no_index")
        return self._lookups

    async def _search(self, data: bytes, clock: Clock, lookups: Lookups, caller: str) -> Response:
        async with clock.limit():
            body = await self._parsed(data, SearchRequest)
            if not body.query.strip():
                raise HttpError(400, "query: is empty: ask something", param="query")
            [found] = await lookups.find([body.query], body, body.top_k, caller=caller)
            return await self.server.workers.run(
                lambda: JSONResponse({"object": "list", "data": [one.as_json() for one in found]})
            )

    async def _embed(self, data: bytes, clock: Clock, lookups: Lookups, embedder: Embedder, record: Record) -> Response:
        async with clock.limit():
            body = await self._parsed(data, EmbeddingRequest)
            _require_its_own(body, embedder.identity, lookups.dimension)
            embedded = await lookups.embed(body.input, embedder)
            answer, record.prompt_tokens = await self.server.workers.run(self._answer, body, embedded, embedder)
            return answer

    async def _parsed(self, data: bytes, kind: type[Body]) -> Body:
        context = self.server.models.current().engine.context
        return await self.server.workers.run(parse, data, kind, self.server.limits, context)

    def _answer(self, body: EmbeddingRequest, embedded: Embedded, embedder: Embedder) -> tuple[Response, int]:
        """The answer, and how many tokens were read."""
        most, counts = embedder.max_tokens, embedded.tokens
        if counts is None:  # the embedding is a server, which doesn't say
            tokenizer = self.server.models.current().tokenizer
            counts = [len(encode_text(tokenizer, text)) for text in body.input]
        read = sum(min(count, most) if most else count for count in counts)
        rows = embedded.vectors
        shown = rows.tolist() if body.encoding_format == "float" else map(_base64, rows)
        answer: dict[str, Any] = {
            "object": "list",
            "data": [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(shown)],
            "model": body.model,
            "usage": {"prompt_tokens": read, "total_tokens": read},
            "truncated": sum(count > most for count in counts) if most else 0,
        }
        return JSONResponse(answer), read


def _require_its_own(body: EmbeddingRequest, name: str, dimension: int) -> None:
    """Refuse what asks for another embedding than the index's."""
    if body.model != name:
        shown = body.model if len(body.model) <= SHOWN_NAME else f"{body.model[:SHOWN_NAME]}..."
        raise HttpError(
            404, f"model {shown!r}: isn't this index's embedding: {name} is", code="model_not_found", param="model"
        )
    if body.dimensions not in (None, dimension):
        raise HttpError(400, f"dimensions = {body.dimensions}: must be {dimension}, or be left out", param="dimensions")


def _base64(vector: np.ndarray) -> str:
    """Little-endian float32, as OpenAI's clients read it."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
