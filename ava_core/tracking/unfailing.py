"""What is only recorded must fail nothing: a server that is away costs a warning and a bounded time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from ava_core.errors import AvaError
from ava_core.server_address import WEB_SCHEMES
from ava_core.tracking.address import recording_uri
from ava_core.tracking.faults import is_silent, unreachable

log = logging.getLogger(__name__)
PATIENCE = 6.0
"""Seconds that a server may take for an answer, of a dozen at a step's beginning and its end."""


def server_uri(environment: Mapping[str, str]) -> str | None:
    """The address of a server; None for a database, which answers no requests."""
    uri = recording_uri(environment)
    return uri if uri and urlsplit(uri).scheme in WEB_SCHEMES else None


@contextmanager
def never_failing(
    uri: str, consequence: str, silence: int = logging.WARNING, but_for: type[Exception] | tuple[()] = ()
) -> Iterator[None]:
    """Turn whatever goes wrong in the block into a warning: servers, proxies and plugins raise what they like.

    Args:
        uri: address of the server.
        consequence: what doesn't happen.
        silence: the level at which it is told that nothing answers.
        but_for: what is raised all the same.
    """
    try:
        yield
    except but_for:
        raise
    except Exception as error:
        fault = error if isinstance(error, AvaError) else unreachable(uri, error)
        log.log(silence if is_silent(error) else logging.WARNING, "mlflow: %s: %s", consequence, fault)
