"""Limits of size, time and number for a request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of the server.

    Attributes:
        body_bytes: largest request body.
        body_seconds: time in which a request's body must arrive.
        held_bytes: sum of the bodies that are being received.
        request_seconds: time limit from the end of a request's body to the end of its answer.
        write_seconds: time for which a client may leave sent data unread.
        waiting: requests that may wait for a thread that parses them, and for one that tokenises them.
        max_sequences: sequences of one request (prompts times n).
    """

    body_bytes: int = 2**20
    body_seconds: float = 30.0
    held_bytes: int = 2**26
    request_seconds: float = 600.0
    write_seconds: float = 30.0
    waiting: int = 128
    max_sequences: int = 32
