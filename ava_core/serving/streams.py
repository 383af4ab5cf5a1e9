"""From the engine's thread to asyncio: the deltas of a request's sequences as an asynchronous iterator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from ava_core.errors import AvaError
from ava_core.serving.engine import Engine
from ava_core.serving.requests import Delta, Request
from ava_core.serving.sequence import Sequence


class Streams:
    """Several sequences of one client at once.

    A client that stops reading doesn't block the engine: its deltas are buffered here, at most `max_new_tokens` of each
    sequence.
    """

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []
        self._deltas: asyncio.Queue[tuple[int, Delta | AvaError]] = asyncio.Queue()

    @classmethod
    def open(cls, engine: Engine, requests: Iterable[Request]) -> Streams:
        """Submit all requests, or none.

        Raises:
            AvaError: the engine refused one.
        """
        streams = cls()
        try:
            for index, request in enumerate(requests):
                streams._sequences.append(engine.submit(request, _Destination(streams, index)))
        except AvaError:
            streams.cancel()
            raise
        return streams

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """Index of the request and delta, until all have finished; leaving early cancels the rest.

        Raises:
            AvaError: one failed.
        """
        left = len(self._sequences)
        try:
            while left:
                index, delta = await self._deltas.get()
                if isinstance(delta, AvaError):
                    raise delta
                left -= delta.finish_reason is not None
                yield index, delta
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Cancel the unfinished sequences."""
        for sequence in self._sequences:
            sequence.cancel()


@dataclass(frozen=True)
class _Destination:
    """Where a sequence's deltas go."""

    streams: Streams
    index: int


class Bridge:
    """Hands deltas to an event loop, all of a step in one call: waking the loop costs more than the work in it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def deliver(self, given: list[tuple[Sequence, Delta | AvaError]]) -> None:
        """Give each delta to its sequence's streams; in the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(_put, given)
        except RuntimeError:
            return  # the event loop has ended


def _put(given: list[tuple[Sequence, Delta | AvaError]]) -> None:
    for sequence, delta in given:
        if isinstance(sequence.owner, _Destination):
            sequence.owner.streams._deltas.put_nowait((sequence.owner.index, delta))
