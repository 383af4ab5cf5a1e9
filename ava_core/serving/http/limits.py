"""What the server allows a request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of the server.

    Attributes:
        body_bytes: of a request's body.
        body_seconds: for a request's body to arrive.
        held_bytes: of all bodies that are being received, together.
        request_seconds: from the end of a request's body to the end of its answer.
        write_seconds: a client may leave a part of its answer unread.
        waiting: requests that may wait for a thread to be parsed, and for one to be made into tokens.
        max_sequences: prompts times n of one request.
    """

    body_bytes: int = 2**20
    body_seconds: float = 30.0
    held_bytes: int = 2**26
    request_seconds: float = 600.0
    write_seconds: float = 30.0
    waiting: int = 128
    max_sequences: int = 32
