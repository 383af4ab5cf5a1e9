"""What the Kubernetes API said, out of the errors of the SDK, which hide it in the causes of theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress

from urllib3.exceptions import HTTPError

from ava_core.errors import first_line, one_line


def status(error: BaseException) -> int | None:
    """The API's HTTP status, if it answered."""
    return next((getattr(cause, "status", None) for cause in _causes(error) if hasattr(cause, "body")), None)


def is_from_api(error: BaseException) -> bool:
    """Whether the API answered with an error, or couldn't be reached."""
    return any(hasattr(cause, "body") or isinstance(cause, HTTPError | OSError) for cause in _causes(error))


def detail(error: BaseException) -> str:
    """What the API, or the connection to it, said, in one line."""
    for cause in _causes(error):
        if body := getattr(cause, "body", None):
            with suppress(ValueError, KeyError, TypeError):
                return one_line(json.loads(body)["message"])
        reason = getattr(cause, "reason", None)
        if number := getattr(cause, "status", None):
            return one_line(f"HTTP {number}: {reason}")
        if isinstance(reason, Exception):  # of urllib3, after its retries: the last part says what happened
            return one_line(str(reason).rpartition(": ")[2])
    return first_line(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__
