"""What stands between this machine and others: proxies, and the index that packages come from. Never a secret."""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed leaves it out

from ava_core.diagnosis.finding import Finding, fail, ok, warn
from ava_core.redaction import redact_address

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
LOCAL = "127.0.0.1"
INDEXES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX")
PIP_FILE = "PIP_CONFIG_FILE"


def check_proxies(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Proxies, and whether what listens on this machine is reached without them."""
    given = {name: value for name in PROXIES if (value := _either_case(environment, name))}
    if not given:
        yield ok("proxy", "none")
        return
    told = ", ".join(f"{name} {redact_address(value)}" for name, value in given.items())
    for name, value in given.items():
        if "://" in value and not _has_host(value):
            yield fail(
                "proxy", f"{name} = {redact_address(value)}: names no host", f"give http://HOST:PORT or unset {name}"
            )
            return
    exempt = _either_case(environment, "no_proxy")
    if not proxy_bypass_environment(LOCAL, {"no": exempt}):
        way = f"no_proxy={','.join(filter(None, (exempt, 'localhost', LOCAL)))}"
        yield warn("proxy", f"{told}; also for this machine's own MLflow server", way)
        return
    yield ok("proxy", f"{told}; not for {LOCAL}")


def _either_case(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name) or environment.get(name.upper()) or ""


def _has_host(address: str) -> bool:
    try:
        return bool(urlsplit(address).hostname)
    except ValueError:
        return False


def check_index(environment: Mapping[str, str], files: Sequence[Path] | None = None) -> Iterator[Finding]:
    """Where pip and uv get packages: their variables, else pip's files.

    Args:
        environment: with those variables.
        files: pip's configuration, later ones win; None: the usual ones.
    """
    named = {name: environment[name] for name in INDEXES if environment.get(name)}
    faulty = None
    for path in reversed(_pip_files(environment) if files is None else files):
        try:
            for option, value in _indexes_of(path).items():
                named.setdefault(f"{option} of {path.name}", value)
        except (OSError, ValueError, configparser.Error) as error:
            faulty = (path, type(error).__name__)
    told = ", ".join(f"{name} {_addresses(value)}" for name, value in named.items())
    if faulty:
        yield warn("index", f"{faulty[0].name} can't be read ({faulty[1]})", "pip refuses to run with it: mend it")
    elif environment.get("PIP_NO_INDEX"):
        yield ok("index", f"none: PIP_NO_INDEX is set{'; ' + told if told else ''}")
    else:
        yield ok("index", told or "pip's default")


def _addresses(value: str) -> str:
    return " ".join(redact_address(address) for address in value.split())


def _pip_files(environment: Mapping[str, str]) -> list[Path]:
    given = environment.get(PIP_FILE)
    if given == os.devnull:
        return []
    home = Path(environment.get("HOME") or "/")
    config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    usual = [
        *(Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf"), home / ".pip/pip.conf"),
        *(config / "pip/pip.conf", Path(sys.prefix) / "pip.conf"),
    ]
    return [*usual, *([Path(given)] if given else [])]


def _indexes_of(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    parser = configparser.RawConfigParser()
    parser.read_string(path.read_text(encoding="utf-8"))
    return {
        option: parser[section][option]
        for option in ("index-url", "extra-index-url")
        for section in ("global", "install")
        if parser.has_option(section, option)
    }
