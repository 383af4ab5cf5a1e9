"""Handlers of the HTTP paths: requests go to the engine, its deltas become answers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ava_core import __version__
from ava_core.errors import AvaError
from ava_core.serving.http.admission import CALLER
from ava_core.serving.http.answers import DONE, Answer, Choice, event
from ava_core.serving.http.bodies import Body, parse
from ava_core.serving.http.calls import Clock, Intake, unless_it_leaves
from ava_core.serving.http.errors import HttpError, from_engine
from ava_core.serving.http.limits import Limits
from ava_core.serving.http.lookups import Lookups, queries_of
from ava_core.serving.http.metrics import Metrics
from ava_core.serving.http.middleware import Record
from ava_core.serving.http.preparation import Looked, Prepared, prepare_chat, prepare_completion
from ava_core.serving.http.protocol import ChatRequest, CompletionRequest, GenerationRequest, StreamOptions
from ava_core.serving.http.sources import sources_of
from ava_core.serving.http.workers import Workers
from ava_core.serving.models import Served, ServedModels
from ava_core.serving.requests import Draining
from ava_core.serving.streams import Streams

SHOWN_NAME = 64
"""Characters of a model's name that an error repeats."""
Prepare = Callable[[Any, Served, Looked], Prepared]


@dataclass(frozen=True)
class Call:
    """The context of a request.

    Attributes:
        prepare: makes the engine's requests from the body.
        workers: threads that run it.
        clock: its time limit.
        record: its fields in the access log.
        caller: SHA-256 of its key; empty: it has none.
    """

    prepare: Prepare
    workers: Workers
    clock: Clock
    record: Record
    caller: str


class Handlers:
    """The handlers of all paths but those of the index, which are in `lookup_handlers`.

    Args:
        models: the served model.
        limits: of requests.
        chat_template: Jinja text instead of the tokenizer's own.
        metrics: of the server.
        lookups: the index, if there is one.
    """

    def __init__(
        self,
        models: ServedModels,
        limits: Limits,
        chat_template: str | None,
        metrics: Metrics,
        lookups: Lookups | None = None,
    ) -> None:
        self.models, self.limits, self.chat_template = models, limits, chat_template
        self.metrics, self.lookups = metrics, lookups
        self.intake = Intake(limits)
        # A slow chat template holds up other chats; what the others do is done in milliseconds.
        self.workers, self.templates = Workers(2), Workers(2)

    def refuse(self) -> None:
        """Refuse new requests; running ones go on."""
        self.intake.draining = True

    async def completions(self, http: HttpRequest) -> Response:
        """POST /v1/completions."""
        return await self._generate(http, CompletionRequest, prepare_completion, self.workers)

    async def chat(self, http: HttpRequest) -> Response:
        """POST /v1/chat/completions."""
        prepare = partial(prepare_chat, chat_template=self.chat_template)
        return await self._generate(http, ChatRequest, prepare, self.templates)

    async def list_models(self, _http: HttpRequest) -> Response:
        """GET /v1/models."""
        listed = [_describe(served) for served in self.models.all()]
        return JSONResponse({"object": "list", "data": [*listed, *self._embedding()]})

    async def show_model(self, http: HttpRequest) -> Response:
        """GET /v1/models/NAME."""
        name = http.path_params["name"]
        embedding = next((each for each in self._embedding() if each["id"] == name), None)
        return JSONResponse(embedding or _describe(self._served(name)))

    async def health(self, _http: HttpRequest) -> Response:
        """GET /healthz."""
        failed = any(served.engine.stats().failed for served in self.models.all())
        status = "failed" if failed else "draining" if self.intake.draining else "ready"
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    async def show_metrics(self, _http: HttpRequest) -> Response:
        """GET /metrics."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def version(self, _http: HttpRequest) -> Response:
        """GET /version."""
        return JSONResponse({"version": __version__})

    # From a request to its answer

    async def _generate(self, http: HttpRequest, kind: type[Body], prepare: Prepare, workers: Workers) -> Response:
        data, clock = await self.intake.receive(http, self.workers, workers)
        call = Call(prepare, workers, clock, http.state.record, getattr(http.state, CALLER, ""))
        return await unless_it_leaves(http, self._answer_in_time(data, kind, call))

    async def _answer_in_time(self, data: bytes, kind: type[Body], call: Call) -> Response:
        async with call.clock.limit():
            context = self.models.current().engine.context
            body = await self.workers.run(parse, data, kind, self.limits, context)
            try:
                return await self._answer(body, call)
            except Draining:  # the model was exchanged between choosing the engine and submitting to it
                return await self._answer(body, call)

    async def _answer(self, body: GenerationRequest, call: Call) -> Response:
        served = self._served(body.model)
        found = await self._look_up(body, call)
        prepared = await call.workers.run(call.prepare, body, served, found)
        count = len(prepared.requests)
        self.metrics.placed.inc(sum(len(passages.found) for passages in prepared.placed))
        answer = Answer(
            served.name,
            chat=isinstance(body, ChatRequest),
            prompt_tokens=prepared.prompt_tokens,
            tokenizer=served.tokenizer,
            sources=None if body.retrieval is None else sources_of(prepared.placed),
        )
        streams = Streams.open(served.engine, prepared.requests)
        call.record.prompt_tokens = prepared.prompt_tokens
        deltas = self._timed(streams, count, call)
        if body.stream:
            events = self._events(deltas, answer, count, body.stream_options, call.record)
            return Events(events, streams)
        choices = [Choice() for _ in range(count)]
        async for index, delta in deltas:
            choices[index].add(delta)
        return await self.workers.run(lambda: JSONResponse(answer.whole(choices)))

    async def _look_up(self, body: GenerationRequest, call: Call) -> Looked:
        if body.retrieval is None:
            return ()
        if self.lookups is None:
            raise HttpError(
                400, "retrieval: this server has no index: start it with --index, or leave it out", param="retrieval"
            )
        asked = body.retrieval
        return await self.lookups.find(queries_of(body), asked, asked.top_k, caller=call.caller, where="retrieval.")

    def _embedding(self) -> list[dict[str, Any]]:
        """What the index was embedded with, as a model by its identity: another embedding has another name."""
        if self.lookups is None or self.lookups.embedder is None:
            return []
        embedder, created = self.lookups.embedder, self.models.current().created
        shown = {"id": embedder.identity, "object": "model", "created": created, "owned_by": "ava"}
        return [{**shown, "dimension": self.lookups.dimension, "max_model_len": embedder.max_tokens}]

    def _served(self, name: str) -> Served:
        everything = self.models.all()
        found = next((served for served in everything if served.name == name), None)
        if found is None:
            shown = name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}..."
            known = ", ".join(served.name for served in everything)
            verb = "are" if len(everything) > 1 else "is"
            raise HttpError(
                404, f"model {shown!r}: is not served: {known} {verb}", code="model_not_found", param="model"
            )
        return found

    async def _timed(self, streams: Streams, count: int, call: Call) -> AsyncIterator[tuple[int, Any]]:
        """The deltas, with their times measured, until the request's time is over."""
        before = call.clock.started
        tokens = [0] * count
        async with call.clock.limit():
            async for index, delta in streams.deltas():
                now = time.perf_counter()
                (self.metrics.per_token if any(tokens) else self.metrics.first_token).observe(now - before)
                before, tokens[index] = now, delta.tokens
                call.record.new_tokens = sum(tokens)
                yield index, delta

    async def _events(
        self,
        deltas: AsyncIterator[tuple[int, Any]],
        answer: Answer,
        count: int,
        options: StreamOptions,
        record: Record,
    ) -> AsyncIterator[bytes]:
        tokens = [0] * count
        for index in range(count):
            if opening := answer.opening(index):
                yield opening
        try:
            async for index, delta in deltas:
                tokens[index] = delta.tokens
                yield answer.chunk(index, delta, sum(tokens) if options.continuous_usage_stats else None)
        except (AvaError, HttpError) as error:
            # The status is sent already; the error comes as an event, as with OpenAI.
            fault = error if isinstance(error, HttpError) else from_engine(error)
            record.failure = fault.code or "error"
            yield event(fault.body())
            return
        if options.include_usage:
            yield answer.closing(sum(tokens))
        yield DONE


class Events(StreamingResponse):
    """An answer as server-sent events; its sequences are cancelled when it ends, even before its first event."""

    def __init__(self, events: AsyncIterator[bytes], streams: Streams) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.cancel()


def _describe(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "ava",
        "version": served.version,
        "max_model_len": served.engine.context,
    }
