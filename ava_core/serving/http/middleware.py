"""Middleware of every request: metrics and access log, errors of ours as status 500, a timeout of writes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ava_core.serving.http.errors import HttpError
from ava_core.serving.http.metrics import Metrics

log = logging.getLogger(__name__)
ABORT = "abort"
"""Key in a request's state: the function that aborts its connection."""
RECORD = "record"
"""Key in a request's state: its `Record`."""
SHOWN_PATH = 128
"""Characters of a path that a line of the log repeats."""


@dataclass
class Record:
    """A request's fields in the access log.

    Attributes:
        prompt_tokens, new_tokens: counts.
        failure: code of the error that ended a stream, or empty.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    failure: str = ""


class Observed:
    """Counts answers by path and status, and writes the access log, without queries, headers and texts."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Sequence[str], log_requests: bool) -> None:
        self.app, self.metrics, self.paths, self.log_requests = app, metrics, frozenset(paths), log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        record = scope["state"][RECORD] = Record()
        started, status = time.perf_counter(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.metrics.requests.labels(path, str(status)).inc()
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            if record.failure:
                self.metrics.broken_streams.labels(record.failure).inc()
            if self.log_requests:
                self._log(scope, status, time.perf_counter() - started, record)

    def _log(self, scope: Scope, status: int, seconds: float, record: Record) -> None:
        client = scope["client"][0] if scope["client"] else "-"
        path = scope["raw_path"][:SHOWN_PATH].decode("ascii", "backslashreplace")
        tokens = f" {record.prompt_tokens}+{record.new_tokens} tokens" if record.prompt_tokens else ""
        failure = f" {record.failure}" if record.failure else ""
        log.info("%s %s %s %d %.3f s%s%s", client, scope["method"], path, status, seconds, tokens, failure)


class Defects:
    """Answers 500 to an unexpected exception, whose traceback goes to the log; a stream that has begun is aborted."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            log.exception("serve: %s failed", scope["path"][:SHOWN_PATH])
            if begun:
                scope["state"][ABORT]()
                return
            answer = HttpError(500, f"{type(error).__name__}: see the server's log", code="internal_error")
            await answer.response()(scope, receive, send)


class WriteTimeout:
    """Aborts the connection of a client that doesn't read its answer."""

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
