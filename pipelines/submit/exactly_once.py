"""Create something exactly once on a server whose answer may get lost, and whose API has no idempotency keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from time import sleep
from typing import TypeVar

from kfp_server_api.exceptions import ApiException
from urllib3.exceptions import HTTPError, InvalidHeader

from pipelines.submit.connection import RETRIES
from pipelines.submit.errors import OUTCOME_UNKNOWN, may_still_be_working, was_never_reached

T = TypeVar("T")

ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 1.0
LOOK_AFTER_SECONDS = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0)
"""Pauses before each look: 45 seconds, more than the 30 for which KFP, while it makes a run, may wait for MLflow."""


def create_once(create: Callable[[], T], find: Callable[[], T | None], *, named: bool) -> T:
    """Create, and after an answer that leaves the outcome open look for what was created before asking again.

    - Refused for now (429): asked again after the time that the server names.
    - Refused because it is there (409): taken as it is.
    - Outcome open (dropped connection, 502, 503, 504): looked for; if it isn't there, asked again.
    - The server may still be at it (no answer in time) or its own fault (500): looked for; asked again only if `named`.

    Args:
        create: asks the server for it.
        find: looks for it by what only this one has.
        named: the server itself refuses a second one of the same name, so that asking again can't do harm.

    Raises:
        ApiException, urllib3.exceptions.HTTPError: the last failure, or that of the last look.
    """
    for attempt in range(ATTEMPTS):
        last = attempt == ATTEMPTS - 1
        failure: Exception
        try:
            return create()
        except ApiException as error:
            if error.status == 429 and not last:
                sleep(_pause(error, attempt))
                continue
            if error.status not in (409, *OUTCOME_UNKNOWN):
                raise
            failure = error
        except HTTPError as error:
            if was_never_reached(error):
                raise
            failure = error
        found = _look(find, LOOK_AFTER_SECONDS[:1] if named else LOOK_AFTER_SECONDS)
        if found is not None:
            return found
        if last or not _may_ask_again(failure, named):
            raise failure
    raise AssertionError("unreachable: the last attempt returns or raises")


def _may_ask_again(failure: Exception, named: bool) -> bool:
    if isinstance(failure, ApiException) and failure.status in (409, 500):
        return False
    return named or not may_still_be_working(failure)


def _look(find: Callable[[], T | None], pauses: Sequence[float]) -> T | None:
    """What `find` finds, None if at the last look the server answered that it isn't there."""
    fault: Exception | None = None
    for pause in pauses:
        sleep(pause)
        try:
            found = find()
        except (ApiException, HTTPError) as error:
            fault = error
            continue
        if found is not None:
            return found
        fault = None
    if fault is not None:
        raise fault
    return None


def _pause(error: ApiException, attempt: int) -> float:
    """Seconds until the next attempt: the server's Retry-After, up to a bound, else exponential backoff."""
    seconds = FIRST_PAUSE_SECONDS * 2**attempt
    asked = (error.headers or {}).get("Retry-After")
    if asked:
        with suppress(InvalidHeader):
            seconds = RETRIES.parse_retry_after(asked)
    return min(seconds, RETRIES.retry_after_max)
