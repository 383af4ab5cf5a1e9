"""What every request passes: keys, counts, and a limit on how long a client may leave an answer unread."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ava_core.serving.http.errors import HttpError
from ava_core.serving.http.metrics import Metrics

log = logging.getLogger(__name__)
ABORT = "abort"
"""In a request's state: drops its connection."""
OPEN_PATHS = ("/healthz",)
"""Paths that need no key: an orchestrator's probes have none."""


class Keys:
    """Refuses requests without one of the keys, if there are any."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app, self.keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] == "http" and self.keys and scope["path"] not in OPEN_PATHS and not self._known(scope):
            error = HttpError(401, "the API key is missing or wrong: send it as a bearer token", code="invalid_api_key")
            error.headers["www-authenticate"] = "Bearer"
            await error.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, key = given.partition(b" ")
        # Every key is compared, in constant time each, so that the answer's time says nothing about them.
        matches = [hmac.compare_digest(key.strip(), known) for known in self.keys]
        return kind.lower() == b"bearer" and any(matches)


class Counted:
    """Counts answers by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Sequence[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counted)


class WriteTimeout:
    """Gives up on a client that doesn't read its answer."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""

        async def limited(message: Message) -> None:
            try:
                async with asyncio.timeout(self.seconds):
                    await send(message)
            except TimeoutError:
                # Closing would wait for the client to read what is buffered. What is sent from here on goes nowhere,
                # and the application hears that the client has gone.
                log.warning("serve: a client left its answer unread for %.0f s: disconnected", self.seconds)
                scope["state"][ABORT]()

        await self.app(scope, receive, limited)
