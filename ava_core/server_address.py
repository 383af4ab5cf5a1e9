"""What can be the address of an MLflow server: a mistake in it is told before any work, not when all is computed."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from ava_core.errors import ConfigError
from ava_core.redaction import redact_address

WEB_SCHEMES = ("http", "https")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""Stores that MLflow opens itself, without a server; `postgresql+psycopg2` names a driver too."""
WANTED = "give http://HOST:PORT or sqlite:///FILE"


def require_server_address(name: str, uri: str) -> str:
    """The address, if MLflow can use it.

    Args:
        name: where it stands, for the message.
        uri: the address.

    Raises:
        ConfigError: it can't, with what was probably meant.
    """
    if fault := _fault(uri):
        raise ConfigError(f"{name} = {redact_address(uri)}: {fault}")
    return uri


def _fault(uri: str) -> str | None:
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:  # a port of letters, brackets that don't close
        return f"is no address ({error}): {WANTED}"
    if "://" not in uri and re.fullmatch(r"[\w.-]+:[0-9]+(/.*)?", uri):
        return f"has no scheme: give http://{uri}"
    if parts.scheme in ("", "file"):
        return f"MLflow no longer tracks in plain files: {WANTED}"
    if parts.scheme in WEB_SCHEMES:
        if not parts.hostname or port == 0:
            return f"names no server: {WANTED}"
        if parts.fragment or "#" in uri:
            return f"is the address of a page: give {redact_address(uri.partition('#')[0].rstrip('/'))}"
        return None
    if parts.scheme.partition("+")[0] not in DATABASES:
        return f"{parts.scheme}:// is no scheme that Ava can register with: {WANTED}"
    if not parts.path.strip("/") or (parts.scheme.startswith("sqlite") and parts.netloc):
        return f"names no database: {WANTED}"
    return None
