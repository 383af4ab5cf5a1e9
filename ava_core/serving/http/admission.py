"""Admission of requests: by Host header, API key and content type."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from ava_core.serving.http.errors import HttpError

OPEN_PATHS = ("/healthz",)
"""Paths that need no key: an orchestrator's probes have none."""
CALLER = "caller"
"""Key in a request's state: `key_digest` of the key that it came with; never logged. Absent without keys."""
ANY_HOST = "*"
SHOWN_HOST = 64
"""Characters of a host's name that an error repeats."""
_HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]+)?")


def header(scope: Scope, name: bytes) -> str:
    """A request's header, the last one of the name; empty without it."""
    return dict(scope["headers"]).get(name, b"").decode("latin-1")


class Hosts:
    """Refuses requests whose Host header is none of the server's names.

    Against DNS rebinding: a web page whose own name resolves to this machine could otherwise read the answers. Its
    requests carry that name, never an address or the name localhost.

    Args:
        app: the application behind.
        names: further host names of the server beside localhost; `*.example.org` matches all below it, `*` any.
        addresses: whether any IP address is accepted as host, as on a server for other machines; else only loopback.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str], addresses: bool) -> None:
        self.app, self.addresses = app, addresses
        self.names = {name.lower().rstrip(".") for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 421."""
        if scope["type"] == "http" and not self.knows(given := header(scope, b"host")):
            shown = given[:SHOWN_HOST]
            error = HttpError(
                421,
                f"host {shown!r}: isn't served here: name it to `ava serve` with --allowed-host if it is right",
                code="host_not_allowed",
            )
            await error.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def knows(self, given: str) -> bool:
        """Whether a Host header names this server."""
        if ANY_HOST in self.names:
            return True
        match = _HOST.fullmatch(given.lower())
        if match is None:
            return False
        name = (match["six"] or match["name"]).rstrip(".")
        try:
            address = ip_address(name)
        except ValueError:
            above = name.partition(".")[2]
            parents = {f"*.{above}", *(f"*.{above[index + 1 :]}" for index, c in enumerate(above) if c == ".")}
            return name == "localhost" or name.endswith(".localhost") or bool(self.names & {name, *parents})
        return self.addresses or address.is_loopback or name in self.names


def key_digest(key: str) -> str:
    """What a key is called where it mustn't be readable: its SHA-256 in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """Refuses requests without one of the keys, if there are any, and tells the others by theirs (`CALLER`)."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app, self.keys = app, [(key.encode(), key_digest(key)) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] == "http" and self.keys and scope["path"] not in OPEN_PATHS:
            caller = self._caller(scope)
            if caller is None:
                error = HttpError(
                    401, "the API key is missing or wrong: send it as a bearer token", code="invalid_api_key"
                )
                error.headers["www-authenticate"] = "Bearer"
                await error.response()(scope, receive, send)
                return
            scope["state"][CALLER] = caller
        await self.app(scope, receive, send)

    def _caller(self, scope: Scope) -> str | None:
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, key = given.partition(b" ")
        # All keys are compared, each in constant time: the time of the answer reveals nothing (timing attack).
        matches = [hmac.compare_digest(key.strip(), known) for known, _ in self.keys]
        if kind.lower() != b"bearer" or not any(matches):
            return None
        return self.keys[matches.index(True)][1]


class JsonOnly:
    """Refuses POST of anything but JSON: a page of another site may send other types without a CORS preflight."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 415."""
        if scope["type"] == "http" and scope["method"] == "POST":
            given = header(scope, b"content-type")
            if given.partition(";")[0].strip().lower() != "application/json":
                error = HttpError(
                    415, f"content-type {given[:64]!r}: must be application/json", code="unsupported_media_type"
                )
                await error.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)
