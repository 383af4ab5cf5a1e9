"""The database that a sweep is kept in: its address, opening it, and what can go wrong there in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.storages import RDBStorage

from ava_core.errors import AvaError, ConfigError, first_line, shorten
from ava_core.redaction import redact, redact_address

SCHEMES = ("sqlite", "postgresql")
DRIVER = "psycopg2"
"""Of PostgreSQL, where the address names none."""
LOCK_SECONDS = 30.0
"""How long SQLite waits for another worker that is writing."""
BEAT_SECONDS, GRACE_SECONDS = 20, 120


@contextmanager
def storage_errors(address: str) -> Iterator[None]:
    """Turn what Optuna, SQLAlchemy and a database's driver raise in the block into one line.

    Raises:
        AvaError: the storage can't be reached, is locked, or refuses.
    """
    shown = redact_address(address)
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, OSError, ImportError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = redact(first_line(cause))
        if "database is locked" in text:
            raise AvaError(
                f"--storage {shown}: is locked by another program for more than {LOCK_SECONDS:.0f} s: end that one, or"
                " use PostgreSQL for many workers; run the same command again to go on"
            ) from error
        if "unable to open database file" in text:
            raise AvaError(
                f"--storage {shown}: can't be opened: does its folder exist, and may you write there?"
            ) from error
        raise AvaError(f"--storage {shown}: can't be used: {shorten(text)}") from error


def require_storage(address: str) -> str:
    """The address, if it is one of a database that a sweep can be kept in.

    Raises:
        ConfigError: it isn't.
    """
    scheme = re.match(r"([a-z0-9]+)(\+[a-z0-9]+)?://", address)
    if not scheme or scheme[1] not in SCHEMES:
        raise ConfigError(
            f"--storage {redact_address(address)}: must be sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        )
    if scheme[1] == "postgresql" and not scheme[2]:  # else SQLAlchemy chooses, and 2.1 not what 2.0 did
        address = address.replace("postgresql://", f"postgresql+{DRIVER}://", 1)
    if address.startswith(f"postgresql+{DRIVER}:") and find_spec(DRIVER) is None:
        raise ConfigError(
            f"--storage {redact_address(address)}: needs {DRIVER}, which isn't installed: pip install psycopg2-binary"
        )
    return address


def open_storage(address: str) -> RDBStorage:
    options: dict[str, Any] = {"pool_pre_ping": True}
    if address.startswith("sqlite"):
        file = Path(re.sub(r"^[a-z0-9+]+:///", "", address).partition("?")[0])
        file.parent.mkdir(parents=True, exist_ok=True)
        options["connect_args"] = {"timeout": LOCK_SECONDS}
    else:
        options["connect_args"] = {"connect_timeout": 10}
    return RDBStorage(address, options, heartbeat_interval=BEAT_SECONDS, grace_period=GRACE_SECONDS)
