"""From a request over HTTP to the engine, and from its deltas to an answer."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from jinja2 import TemplateError
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from ava_core import __version__
from ava_core.errors import AvaError
from ava_core.generation.prompts import encode
from ava_core.serving.http.answers import DONE, Answer, Choice, event
from ava_core.serving.http.errors import HttpError, from_engine, from_validation
from ava_core.serving.http.limits import Limits
from ava_core.serving.http.metrics import Metrics
from ava_core.serving.http.protocol import ChatRequest, CompletionRequest, GenerationRequest, StreamOptions
from ava_core.serving.models import Served, ServedModels
from ava_core.serving.requests import Draining, Request
from ava_core.serving.streams import Streams

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""For tokenizers without one of their own: base models, which know no turns but may continue a dialogue."""
LONG_PROMPT = 2**13
"""Characters; they take some milliseconds to encode."""
Body = TypeVar("Body", bound=GenerationRequest)


class Handlers:
    """What the application does for each path."""

    def __init__(self, models: ServedModels, limits: Limits, chat_template: str | None) -> None:
        self.models, self.limits, self.chat_template = models, limits, chat_template
        self.metrics = Metrics(models)
        self.draining = False

    def refuse(self) -> None:
        """Take no more requests; those that are running go on."""
        self.draining = True

    async def completions(self, http: HttpRequest) -> Response:
        """POST /v1/completions."""
        body = await self._body(http, CompletionRequest)
        return await self._once_more(lambda: self._complete(http, body))

    async def _complete(self, http: HttpRequest, body: CompletionRequest) -> Response:
        served = self._served(body.model)
        prompts = [await _tokens(served, prompt) for prompt in body.prompts()]
        echoes = ["" if not body.echo else str(served.tokenizer.decode(ids)) for ids in prompts]
        requests = [
            request for ids in prompts for request in self._requests(body, served, ids, body.max_tokens, body.logprobs)
        ]
        repeated = [echo for echo in echoes for _ in range(body.choices)]
        return await self._answer(http, body, served, requests, chat=False, echoes=repeated)

    async def chat(self, http: HttpRequest) -> Response:
        """POST /v1/chat/completions."""
        body = await self._body(http, ChatRequest)
        return await self._once_more(lambda: self._chat(http, body))

    async def _chat(self, http: HttpRequest, body: ChatRequest) -> Response:
        served = self._served(body.model)
        template = self.chat_template or getattr(served.tokenizer, "chat_template", None) or CHAT_TEMPLATE
        try:
            text = served.tokenizer.apply_chat_template(
                [message.plain() for message in body.messages],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except TemplateError as error:
            raise HttpError(400, f"messages: the chat template refuses them: {error}", param="messages") from error
        ids = await _tokens(served, text)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        requests = self._requests(body, served, ids, body.max_completion_tokens or body.max_tokens, logprobs)
        return await self._answer(http, body, served, requests, chat=True, echoes=[""] * len(requests))

    async def list_models(self, _http: HttpRequest) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [_describe(self.models.current())]})

    async def show_model(self, http: HttpRequest) -> Response:
        """GET /v1/models/NAME."""
        return JSONResponse(_describe(self._served(http.path_params["name"])))

    async def health(self, _http: HttpRequest) -> Response:
        """GET /healthz."""
        failed = self.models.current().engine.stats().failed
        status = "failed" if failed else "draining" if self.draining else "ready"
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    async def show_metrics(self, _http: HttpRequest) -> Response:
        """GET /metrics."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def version(self, _http: HttpRequest) -> Response:
        """GET /version."""
        return JSONResponse({"version": __version__})

    # From a request to its answer

    async def _once_more(self, attempt: Callable[[], Awaitable[Response]]) -> Response:
        """Try again where the model was exchanged between choosing the engine and submitting to it."""
        try:
            return await attempt()
        except Draining:
            return await attempt()

    async def _body(self, http: HttpRequest, kind: type[Body]) -> Body:
        if self.draining:
            raise from_engine(Draining("the server is going down: try again"))
        data = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for part in http.stream():
                    data += part
                    if len(data) > self.limits.body_bytes:
                        raise HttpError(413, f"body: more than {self.limits.body_bytes} bytes", code="body_too_large")
        except TimeoutError as error:
            late = HttpError(408, f"body: wasn't there after {self.limits.body_seconds:.0f} s", code="timeout")
            late.headers["connection"] = "close"
            raise late from error
        try:
            return kind.model_validate(json.loads(data.decode()))
        except UnicodeDecodeError as error:
            raise HttpError(400, f"body: isn't valid UTF-8 at byte {error.start}") from error
        except json.JSONDecodeError as error:
            raise HttpError(400, f"body: isn't valid JSON: {error}") from error
        except RecursionError as error:
            raise HttpError(400, "body: is nested too deeply") from error
        except ValidationError as error:
            raise from_validation(error, kind) from error

    def _served(self, name: str) -> Served:
        served = self.models.current()
        if name != served.name:
            raise HttpError(
                404, f"model {name!r}: is not served: {served.name} is", code="model_not_found", param="model"
            )
        return served

    def _requests(
        self, body: GenerationRequest, served: Served, ids: list[int], wanted: int | None, logprobs: int | None
    ) -> list[Request]:
        context = served.engine.context
        room = context - len(ids)
        if room < 1 or (wanted or 1) > room:
            raise HttpError(
                400,
                f"prompt of {len(ids)} tokens and max_tokens = {wanted}: the model's context holds {context}: at most"
                f" {max(room, 0)} tokens can follow",
                code="context_length_exceeded",
                param="max_tokens" if room >= 1 else "prompt",
            )
        settings = body.settings(wanted or room)
        first = body.seed % 2**63 if body.seed is not None else random.getrandbits(62)
        return [
            Request(
                prompt_ids=tuple(ids),
                strategy=body.strategy,
                settings=settings,
                seed=first + index,
                logprobs=logprobs,
                ignore_end=bool(body.ignore_eos),
            )
            for index in range(body.choices)
        ]

    async def _answer(
        self,
        http: HttpRequest,
        body: GenerationRequest,
        served: Served,
        requests: list[Request],
        *,
        chat: bool,
        echoes: list[str],
    ) -> Response:
        if len(requests) > self.limits.max_sequences:
            raise HttpError(400, f"{len(requests)} sequences: must be at most {self.limits.max_sequences}", param="n")
        prompt_tokens = sum(len(request.prompt_ids) for request in requests[:: body.choices])
        answer = Answer(served.name, chat=chat, prompt_tokens=prompt_tokens, tokenizer=served.tokenizer, echoes=echoes)
        streams = Streams.open(served.engine, requests)
        deltas = self._timed(streams)
        if body.stream:
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            events = self._events(deltas, answer, len(requests), body.stream_options or StreamOptions())
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        return await self._unless_it_leaves(http, self._whole(deltas, answer, len(requests)))

    async def _timed(self, streams: Streams) -> AsyncIterator[tuple[int, Any]]:
        """The deltas, with their times measured, until the request's time is over."""
        started = before = time.perf_counter()
        first = True
        try:
            async with asyncio.timeout(self.limits.request_seconds):
                async for index, delta in streams.deltas():
                    now = time.perf_counter()
                    (self.metrics.first_token if first else self.metrics.per_token).observe(now - before)
                    first, before = False, now
                    yield index, delta
        except TimeoutError as error:
            spent = time.perf_counter() - started
            raise HttpError(504, f"the answer wasn't done after {spent:.0f} s", code="timeout") from error

    async def _whole(self, deltas: AsyncIterator[tuple[int, Any]], answer: Answer, count: int) -> Response:
        choices = [Choice() for _ in range(count)]
        async for index, delta in deltas:
            choices[index].add(delta)
        return JSONResponse(answer.whole(choices))

    async def _events(
        self, deltas: AsyncIterator[tuple[int, Any]], answer: Answer, count: int, options: StreamOptions
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
            yield event((error if isinstance(error, HttpError) else from_engine(error)).body())
            return
        if options.include_usage:
            yield answer.closing(sum(tokens))
        yield DONE

    async def _unless_it_leaves(self, http: HttpRequest, answer: Any) -> Response:
        """The answer, given up when the client has gone."""
        work = asyncio.ensure_future(answer)
        gone = asyncio.ensure_future(_disconnected(http))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            return Response(status_code=499)
        finally:
            for task in (work, gone):
                task.cancel()


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _tokens(served: Served, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, list):
        unknown = [token for token in prompt if token >= len(served.tokenizer)]
        if unknown:
            raise HttpError(400, f"prompt: token {unknown[0]}: must be < {len(served.tokenizer)}", param="prompt")
        return prompt
    if len(prompt) > LONG_PROMPT:  # the streams of others go on meanwhile
        return await asyncio.to_thread(encode, served.tokenizer, prompt)
    return encode(served.tokenizer, prompt)


def _describe(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": 0,
        "owned_by": "ava",
        "version": served.version,
        "max_model_len": served.engine.context,
    }
