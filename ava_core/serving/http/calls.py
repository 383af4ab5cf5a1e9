"""What all requests with a body go through: received, counted, limited in time, given up when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ava_core.serving.http.bodies import Uploads
from ava_core.serving.http.errors import HttpError, from_engine
from ava_core.serving.http.limits import Limits
from ava_core.serving.http.workers import Workers
from ava_core.serving.requests import Draining, QueueFull

RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Clock:
    """A request's time limit, which starts at the end of its body.

    Attributes:
        seconds: the limit.
        started: `time.perf_counter` at its start.
    """

    seconds: float
    started: float = field(default_factory=time.perf_counter)

    @contextlib.asynccontextmanager
    async def limit(self) -> AsyncIterator[None]:
        """Cancel the block when the time is over.

        Raises:
            HttpError: 504.
        """
        try:
            async with asyncio.timeout(self.started + self.seconds - time.perf_counter()):
                yield
        except TimeoutError as error:
            spent = time.perf_counter() - self.started
            raise HttpError(504, f"the answer wasn't done after {spent:.0f} s", code="timeout") from error


class Intake:
    """Receives bodies, unless the server is going down or too many wait for a thread.

    Attributes:
        limits: of the server.
        draining: whether new requests are refused.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits, self.draining = limits, False
        self._uploads = Uploads(limits)

    async def receive(self, http: HttpRequest, *needed: Workers) -> tuple[bytes, Clock]:
        """The body of a request, and its time, which begins.

        Args:
            http: the request.
            needed: threads that it will wait for.

        Raises:
            HttpError: the server is draining, or the body is too long or too slow.
            QueueFull: too many wait already.
            ClientDisconnect: the client left.
        """
        if self.draining:
            raise from_engine(Draining("the server is going down: try again"))
        data = await self._uploads.read(http)
        clock = Clock(self.limits.request_seconds)
        for workers in needed:
            if workers.waiting >= self.limits.waiting:
                raise QueueFull(workers.waiting, RETRY_SECONDS)
        return data, clock


async def unless_it_leaves(http: HttpRequest, answer: Coroutine[Any, Any, Response]) -> Response:
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
