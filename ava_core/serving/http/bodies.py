"""A request's body: received within limits of time and memory, and of limited depth and size before it is validated.

Validation visits every value and records each fault: minutes and gigabytes for a malicious body of 1 MB. So values,
fields and depth are counted first; what passes is validated in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request as HttpRequest

from ava_core.serving.http.errors import HttpError, from_validation
from ava_core.serving.http.limits import Limits
from ava_core.serving.http.protocol import MAX_CHOICES

Body = TypeVar("Body", bound=BaseModel)
MAX_DEPTH = 32
MAX_VALUES = 2**16
"""Members of objects and items of lists in a body, together, without its prompt."""
MAX_FIELDS = 128
"""Members of one object."""
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""Of JSON; one that doesn't end goes to the end, so that the time is linear."""
MAX_FIELD_NAME = 256
"""Characters: error messages repeat names."""


class Uploads:
    """The bodies that are being received.

    When their sum exceeds `held_bytes`, the oldest is aborted: honest clients are done in milliseconds, slow ones would
    fill the memory (slow POST).
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._sizes: dict[asyncio.Timeout, int] = {}  # by the timer of each, in the order in which they began

    async def read(self, http: HttpRequest) -> bytes:
        """The whole body.

        Raises:
            HttpError: it is too long, or didn't come in time.
            ClientDisconnect: the client left.
        """
        data = bytearray()
        timer = asyncio.timeout(self.limits.body_seconds)
        try:
            async with timer:
                self._sizes[timer] = 0
                async for part in http.stream():
                    data += part
                    if len(data) > self.limits.body_bytes:
                        raise HttpError(413, f"body: more than {self.limits.body_bytes} bytes", code="body_too_large")
                    self._make_room(timer, len(data))
        except TimeoutError as error:
            late = HttpError(408, f"body: wasn't there after {self.limits.body_seconds:.0f} s", code="timeout")
            if timer not in self._sizes:
                late = HttpError(503, "body: came too slowly while others waited: send it again", code="overloaded")
                late.headers["retry-after"] = "1"
            late.headers["connection"] = "close"
            raise late from error
        finally:
            self._sizes.pop(timer, None)
        return bytes(data)

    def _make_room(self, timer: asyncio.Timeout, size: int) -> None:
        if timer in self._sizes:
            self._sizes[timer] = size
        while sum(self._sizes.values()) > self.limits.held_bytes:
            oldest = next(iter(self._sizes))
            del self._sizes[oldest]
            oldest.reschedule(asyncio.get_running_loop().time())


def parse(data: bytes, kind: type[Body], limits: Limits, context: int) -> Body:
    """Parse and validate a body; in a worker thread, for it takes some milliseconds per 100 kB.

    Args:
        data: the body.
        kind: class to validate it as.
        limits: the server's.
        context: length of the model's context in tokens.

    Raises:
        HttpError: 400, the first fault.
    """
    _require_few(data)
    try:
        value = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise HttpError(400, f"body: isn't valid UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise HttpError(400, f"body: isn't valid JSON: {error}") from error
    except ValueError as error:  # of `int`, which refuses what it would take quadratic time for
        raise HttpError(400, "body: holds a number of more than 4300 digits") from error
    except RecursionError as error:
        raise _too_deep() from error
    if not isinstance(value, dict):
        raise HttpError(400, "body: must be a JSON object")
    _require_shape({name: given for name, given in value.items() if name != "prompt"})
    _require_sequences(value, limits.max_sequences, context)
    if isinstance(value.get("messages"), list) and len(value["messages"]) > context:
        raise _too_long(f"messages: {len(value['messages'])}", context, "messages")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise from_validation(error, kind) from error


def _require_few(data: bytes) -> None:
    """A bound on the number of objects and lists, before they take 60 times the room that their text does."""
    if _brackets(data) > MAX_VALUES and _brackets(_STRING.sub(b"", data)) > MAX_VALUES:
        raise _too_many()


def _brackets(data: bytes) -> int:
    return data.count(b"[") + data.count(b"{")


def _too_many() -> HttpError:
    return HttpError(400, f"body: holds more than {MAX_VALUES} values")


def _too_deep() -> HttpError:
    return HttpError(400, f"body: is nested too deeply: at most {MAX_DEPTH} levels")


def _too_long(what: str, context: int, param: str) -> HttpError:
    return HttpError(
        400, f"{what}: the model's context holds {context} tokens", code="context_length_exceeded", param=param
    )


def _require_shape(value: dict[str, Any]) -> None:
    """Bounds on depth, names and the number of values."""
    level: list[Any] = [value]
    count = 0
    for _ in range(MAX_DEPTH):
        for each in level:
            count += len(each)
            if isinstance(each, dict):
                _require_fields(each)
        if count > MAX_VALUES:
            raise _too_many()
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _require_fields(value: dict[str, Any]) -> None:
    if len(value) > MAX_FIELDS:
        raise HttpError(400, f"body: an object of {len(value)} fields: at most {MAX_FIELDS}")
    longest = max(map(len, value), default=0)
    if longest > MAX_FIELD_NAME:
        raise HttpError(400, f"body: a field's name of {longest} characters: at most {MAX_FIELD_NAME}")


def _require_sequences(value: dict[str, Any], most: int, context: int) -> None:
    """Bounds on a prompt: how many there are, times n, and how long lists of tokens are.

    What else may be wrong with it, or with n, is found by validation.
    """
    prompt, n = value.get("prompt"), value.get("n")
    choices = n if type(n) is int and 1 <= n <= MAX_CHOICES else 1
    prompts = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else [prompt]
    if len(prompts) * choices > most:
        raise HttpError(400, f"{len(prompts) * choices} sequences: must be at most {most}", param="n")
    for ids in prompts:
        if isinstance(ids, list) and len(ids) > context:
            raise _too_long(f"prompt of {len(ids)} tokens", context, "prompt")
