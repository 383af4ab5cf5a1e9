"""The ASGI application: OpenAI's completions and chat completions, /v1/models, /healthz, /metrics, an index's paths."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from ava_core.errors import AvaError
from ava_core.retrieval.retriever import Retriever
from ava_core.serving.http.admission import Hosts, JsonOnly, Keys
from ava_core.serving.http.errors import HttpError, from_engine
from ava_core.serving.http.handlers import Handlers
from ava_core.serving.http.limits import Limits
from ava_core.serving.http.lookup_handlers import LookupHandlers
from ava_core.serving.http.lookups import Lookups
from ava_core.serving.http.metrics import Metrics
from ava_core.serving.http.middleware import Defects, Observed, WriteTimeout
from ava_core.serving.models import ServedModels


@dataclass(frozen=True, kw_only=True)
class Access:
    """Which requests are admitted.

    Attributes:
        keys: API keys, one of which a request must send; none: no key is required.
        hosts: further host names of the server beside localhost; see `Hosts`.
        addresses: whether other IP addresses than loopback are accepted as host.
        origins: CORS origins that are allowed; `*`: all.
        labels: access labels by SHA-256 of the key that has them.
    """

    keys: Sequence[str] = ()
    hosts: Sequence[str] = ()
    addresses: bool = False
    origins: Sequence[str] = ()
    labels: Mapping[str, Collection[str]] = field(default_factory=dict)


def create_app(
    models: ServedModels,
    *,
    limits: Limits | None = None,
    access: Access | None = None,
    chat_template: str | None = None,
    log_requests: bool = True,
    retriever: Retriever | None = None,
) -> Starlette:
    """The application.

    Args:
        models: the served model.
        limits: limits of requests; None: the defaults.
        access: which requests are admitted; None: all from this machine.
        chat_template: Jinja text instead of the tokenizer's own.
        log_requests: whether each request is a line of the log.
        retriever: the index that requests may look things up in.

    Returns:
        The application; `state.refuse()` makes it refuse new requests.
    """
    access, limits, metrics = access or Access(), limits or Limits(), Metrics(models)
    lookups = Lookups(retriever, access.labels, metrics, limits.waiting) if retriever else None
    server = Handlers(models, limits, chat_template, metrics, lookups)
    index = LookupHandlers(server, lookups)
    routes = [
        Route("/v1/completions", server.completions, methods=["POST"]),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/search", index.search, methods=["POST"]),
        Route("/v1/embeddings", index.embeddings, methods=["POST"]),
        Route("/v1/models", server.list_models),
        Route("/v1/models/{name:path}", server.show_model),
        Route("/healthz", server.health),
        Route("/metrics", server.show_metrics),
        Route("/version", server.version),
    ]
    paths = [route.path for route in routes]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Observed, metrics=metrics, paths=paths, log_requests=log_requests),
            Middleware(WriteTimeout, seconds=limits.write_seconds),
            Middleware(Hosts, names=access.hosts, addresses=access.addresses),
            # Before the keys, which a browser's question whether it may ask doesn't carry.
            *_cross_origin(access.origins),
            Middleware(Keys, keys=access.keys),
            Middleware(JsonOnly),
            Middleware(Defects),
        ],
        exception_handlers={
            HttpError: _answer_error,
            HTTPException: _answer_http_error,
            AvaError: _answer_ava_error,
            ClientDisconnect: _answer_nobody,
        },
    )
    app.state.refuse = server.refuse
    return app


def _cross_origin(origins: Sequence[str]) -> list[Middleware]:
    """Cookies are never asked for: a key comes as a header. Pages that were named may reach a private network."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("retry-after",),
            allow_private_network=True,
        )
    ]


async def _answer_error(_request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return error.response()


async def _answer_ava_error(_request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, AvaError)
    return from_engine(error).response()


async def _answer_nobody(_request: HttpRequest, _error: Exception) -> Response:
    """The client left while it sent its body: counted with nginx's status, and sent nowhere."""
    return Response(status_code=499)


async def _answer_http_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    found = HttpError(error.status_code, f"{request.method} {request.url.path}: {error.detail.lower()}")
    found.headers.update(error.headers or {})
    return found.response()
