"""The ASGI application: OpenAI's completions and chat completions, /v1/models, /healthz, /metrics."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from ava_core.errors import AvaError
from ava_core.serving.http.errors import HttpError, from_engine
from ava_core.serving.http.handlers import Handlers
from ava_core.serving.http.limits import Limits
from ava_core.serving.http.middleware import Counted, Keys, WriteTimeout
from ava_core.serving.models import ServedModels


def create_app(
    models: ServedModels, *, limits: Limits | None = None, keys: Sequence[str] = (), chat_template: str | None = None
) -> Starlette:
    """The application.

    Args:
        models: what is served.
        limits: bounds; None: the defaults.
        keys: API keys, one of which a request must send; none: everybody is served.
        chat_template: Jinja text instead of the tokenizer's own.

    Returns:
        The application; `state.refuse()` makes it refuse new requests.
    """
    server = Handlers(models, limits or Limits(), chat_template)
    routes = [
        Route("/v1/completions", server.completions, methods=["POST"]),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/models", server.list_models),
        Route("/v1/models/{name:path}", server.show_model),
        Route("/healthz", server.health),
        Route("/metrics", server.show_metrics),
        Route("/version", server.version),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Counted, metrics=server.metrics, paths=[route.path for route in routes]),
            Middleware(Keys, keys=list(keys)),
            Middleware(WriteTimeout, seconds=server.limits.write_seconds),
        ],
        exception_handlers={
            HttpError: _answer_error,
            HTTPException: _answer_http_error,
            AvaError: _answer_ava_error,
            Exception: _answer_defect,
        },
    )
    app.state.refuse = server.refuse
    return app


async def _answer_error(_request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return error.response()


async def _answer_ava_error(_request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, AvaError)
    return from_engine(error).response()


async def _answer_defect(_request: HttpRequest, error: Exception) -> Response:
    """In OpenAI's shape; the traceback goes to the log."""
    return HttpError(500, f"{type(error).__name__}: see the server's log", code="internal_error").response()


async def _answer_http_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    found = HttpError(error.status_code, f"{request.method} {request.url.path}: {error.detail.lower()}")
    found.headers.update(error.headers or {})
    return found.response()
