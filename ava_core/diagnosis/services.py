"""The Docker engine, asked by its API: the client's package isn't needed for that."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from ava_core.diagnosis.finding import Finding, ok, warn
from ava_core.redaction import redact_address

SOCKET = "unix:///var/run/docker.sock"
SECONDS = 1.5
WANTED = "only RUNNER=docker and `make images` need it: start one, or name it in DOCKER_HOST"


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self._path)


def check_docker(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether a Docker engine answers where DOCKER_HOST says, else at the usual socket."""
    address = environment.get("DOCKER_HOST") or SOCKET
    try:
        version = _ask(address, bool(environment.get("DOCKER_TLS_VERIFY")))
    except PermissionError:
        yield warn("docker", f"{address}: permission denied", "add yourself to its group: usermod -aG docker $USER")
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        yield warn("docker", f"{redact_address(address)}: no engine answers ({reason})", WANTED)
    else:
        yield ok("docker", f"{version} at {redact_address(address)}")


def _ask(address: str, encrypted: bool) -> str:
    parts = urlsplit(address)
    if parts.scheme == "unix":
        connection: http.client.HTTPConnection = _SocketConnection(parts.path)
    elif parts.scheme in ("tcp", "http", "https") and parts.hostname:
        if encrypted or parts.scheme == "https":  # its certificates are the client's affair: does anyone listen?
            socket.create_connection((parts.hostname, parts.port or 2376), timeout=SECONDS).close()
            return "an engine with TLS"
        connection = http.client.HTTPConnection(parts.hostname, parts.port or 2375, timeout=SECONDS)
    else:
        raise ValueError("no address that is asked here")
    try:
        connection.request("GET", "/version")
        answer = connection.getresponse().read(65_536)
        return f"engine {json.loads(answer)['Version']}"
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError("what answers there is no Docker engine") from error
    finally:
        connection.close()
