"""uvicorn with limits on idle connections, and a shutdown that drains running requests."""

from __future__ import annotations

import asyncio
import contextlib
import http
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ava_core.interruption import heeded
from ava_core.serving.http.errors import HttpError
from ava_core.serving.http.middleware import ABORT

HEADER_SECONDS = 20.0
"""Time in which a request's headers must arrive; uvicorn has no limit (slowloris)."""


MAX_CONNECTIONS = 1024
BACKLOG = 128
"""Connections that the kernel holds until they are accepted."""
SPARE_DESCRIPTORS = 64 + 3 * BACKLOG
"""File descriptors kept free: for files, for accepted connections before their first event, for aborted ones."""


def most_connections() -> int:
    """Connections kept open: `MAX_CONNECTIONS`, or as many as the limit on open files allows."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(8, min(MAX_CONNECTIONS, soft - SPARE_DESCRIPTORS))


def raise_open_files() -> None:
    """Make room for `MAX_CONNECTIONS` where the hard limit on open files allows more than the soft one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))


class BoundedProtocol(H11Protocol):
    """A connection with a time limit for headers, which the application can abort.

    Where there are too many, an idle one is aborted: of the peer with the most idle connections, the one that has been
    idle for the longest. Connections with a running request are never aborted for others.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._late: asyncio.TimerHandle | None = None
        self._waiting_since = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit of the first request's headers."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, ABORT: transport.abort}
        self._watch()
        self._make_room()

    def data_received(self, data: bytes) -> None:
        """Parse received data."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Start the time limit of the next request's headers."""
        self._waiting_since = self.loop.time()
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the time limit."""
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer 400 to what isn't HTTP, unless an answer has begun."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        if not self._waits():  # the handler that reads the body gets a disconnect
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._answer(HttpError(400, msg))

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: the request is answered like any other, and two lines of the log for each would be a client's."""

    def _answer(self, error: HttpError) -> None:
        """An answer without the application, after which the connection closes."""
        answer = error.response()
        headers = [*answer.raw_headers, (b"connection", b"close")]
        reason = http.HTTPStatus(error.status).phrase.encode()
        events = (
            h11.Response(status_code=error.status, headers=headers, reason=reason),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        )
        for each in events:
            self.transport.write(self.conn.send(each) or b"")
        self.transport.close()

    def _waits(self) -> bool:
        """Whether no request is running."""
        return self.cycle is None or self.cycle.response_complete

    def _idles(self) -> bool:
        """Whether it waits for data of the client: for a request, or for the rest of a body."""
        return not self.transport.is_closing() and (self._waits() or self.cycle.more_body)

    def _make_room(self) -> None:
        open_ones = [each for each in self.connections if not each.transport.is_closing()]
        if len(open_ones) <= most_connections():
            return
        idle = [each for each in open_ones if isinstance(each, BoundedProtocol) and each._idles() and each is not self]
        if not idle:
            error = HttpError(503, "all connections are in use: try again", code="overloaded")
            error.headers["retry-after"] = "1"
            self._answer(error)
            return
        held = Counter(each._peer() for each in idle)
        max(idle, key=lambda each: (held[each._peer()], -each._waiting_since)).transport.abort()

    def _peer(self) -> str:
        return self.client[0] if self.client else ""

    def _watch(self) -> None:
        if self._waits() and self._late is None:
            self._late = self.loop.call_later(HEADER_SECONDS, self._drop)
        elif not self._waits() and self._late is not None:
            self._late.cancel()
            self._late = None

    def _drop(self) -> None:
        self._late = None
        if self._waits():
            self.transport.abort()


class DrainingServer(uvicorn.Server):
    """Returns after a signal when running requests are done; uvicorn itself would raise the signal again.

    Until then it listens: new requests get status 503, and /healthz says that it is draining.

    Args:
        config: uvicorn's.
        ready: called when it listens.
        refuse: called when new requests are to be refused.
        drain_seconds: time for running requests after the first signal; a second signal ends at once.

    Attributes:
        cut_off: requests that were cancelled.
    """

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], refuse: Callable[[], None], drain_seconds: float
    ) -> None:
        super().__init__(config)
        self._ready, self._refuse, self._drain_seconds = ready, refuse, drain_seconds
        self._deadline: float | None = None
        self.cut_off = 0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM, Ctrl-C and a terminal that closes begin the end; not what is ignored, as by nohup."""
        signals = heeded()
        before = {each: signal.getsignal(each) for each in signals}
        loop = asyncio.get_running_loop()
        for each in signals:
            loop.add_signal_handler(each, self.handle_exit, each, None)
        try:
            yield
        finally:
            for each in signals:
                loop.remove_signal_handler(each)
                signal.signal(each, before[each])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start draining; at a second signal, end at once."""
        now = time.monotonic()
        self._deadline = now + self._drain_seconds if self._deadline is None else now
        self._refuse()

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and report that it does."""
        await super().startup(sockets=sockets)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now."""
        running = len(self.server_state.tasks)
        if self._deadline is not None and (not running or time.monotonic() >= self._deadline):
            return True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Any = None) -> None:
        """Close; what runs has uvicorn's own short time left, and is cancelled then."""
        await super().shutdown(sockets)
        self.cut_off = len(self.server_state.tasks)
