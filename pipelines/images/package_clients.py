"""Where this machine's pip and apt get their packages, as build secrets: the build uses it and no layer holds it.

With plain PyPI and Debian's own mirrors there is nothing to pass on. Otherwise pip's indexes, proxy and such, apt's
mirrors and settings, and the certificates that both trust are written to files that only this user can read, for the
time of the build. An index or a folder of wheels on this machine's disk, which a build can't see, is served to it on
the loopback address under a path that nobody can guess.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import http.server
import os
import re
import secrets
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

PIP_LISTS = ("index-url", "extra-index-url", "find-links")
PIP_VALUES = ("no-index", "proxy", "retries", "timeout", "trusted-host")
APT_SETTINGS = re.compile(r'^(Acquire::(?:https?|Check-|Force|Retries)[\w:.-]*) "(.*)";$')
DEBIAN = "http://deb.debian.org/"
PUBLIC_HOSTS = {
    "deb.debian.org",
    "download.pytorch.org",
    "files.pythonhosted.org",
    "pypi.org",
    "127.0.0.1",
    "localhost",
}
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """How this machine's package clients are configured.

    Attributes:
        pip: pip's options, by name without dashes; values separated by blanks.
        apt_sources: lines of a sources.list; none for Debian's own mirrors.
        apt_settings: apt's settings, by name.
        certificates: PEM bundle; None if the clients use their own.
    """

    pip: Mapping[str, str]
    apt_sources: Sequence[str]
    apt_settings: Mapping[str, str]
    certificates: Path | None

    def traces(self) -> dict[str, bytes]:
        """Bytes that would give them away in a layer, by what they are: hosts, folders, credentials, certificates.

        Names that packages mention anyway (PyPI, Debian's mirrors, certificates that every Debian has) are none.
        """
        found: dict[str, bytes] = {}
        addresses = [word for name in (*PIP_LISTS, "proxy", "trusted-host") for word in self.pip.get(name, "").split()]
        addresses += [word for line in self.apt_sources for word in line.split() if "://" in word]
        addresses += [value for value in self.apt_settings.values() if "://" in value]
        addresses += [value for name in PROXY_VARIABLES if (value := os.environ.get(name))]
        for address in addresses:
            parts = urlsplit(address)
            if folder := _folder(address):
                found[f"folder {folder}"] = str(folder).encode()
            host = parts.hostname or ("" if "/" in address else address.partition(":")[0])
            if host and host not in PUBLIC_HOSTS:
                found[f"host {host}"] = host.encode()
            if parts.password:
                found[f"password for {host}"] = parts.password.encode()
        for number, certificate in enumerate(_private_certificates(self.certificates), 1):
            body = base64.b64encode(certificate)
            found[f"certificate {number}, as PEM"] = b"\n".join(body[i : i + 64] for i in range(0, len(body), 64))
            found[f"certificate {number}, as DER"] = certificate
        return found


def read_sources(release: str) -> Sources:
    """The configuration of this machine's pip and apt; of apt only if this is a Debian of this release."""
    pip = _pip_options()
    settings, mirrors = _apt(release)
    bundles = [pip.pop("cert", ""), *(os.environ.get(name, "") for name in CA_VARIABLES)]
    certificates = next((Path(bundle) for bundle in bundles if bundle and Path(bundle).is_file()), None)
    kept = {name: value for name, value in pip.items() if name in (*PIP_LISTS, *PIP_VALUES)}
    return Sources(pip=kept, apt_sources=mirrors, apt_settings=settings, certificates=certificates)


@contextlib.contextmanager
def build_secrets(sources: Sources) -> Iterator[dict[str, Path]]:
    """Files of build secrets by their id, for as long as the context is open."""
    with tempfile.TemporaryDirectory(prefix="ava-secrets-") as name, _served(sources.pip) as pip:  # mode 0700
        contents = {
            "pip_conf": "".join(f"{option} = {value}\n" for option, value in sorted(pip.items())),
            "apt_conf": "".join(f'{option} "{value}";\n' for option, value in sources.apt_settings.items()),
            "apt_sources": "".join(f"{line}\n" for line in sources.apt_sources),
            "ca": sources.certificates.read_text(encoding="utf-8") if sources.certificates else "",
        }
        files = {}
        for identity, content in contents.items():
            if content:
                files[identity] = Path(name, identity)
                files[identity].write_text(("[global]\n" if identity == "pip_conf" else "") + content, encoding="utf-8")
        yield files


def _pip_options() -> dict[str, str]:
    """pip's options from its files and from PIP_*, the latter over the former, as pip itself resolves them."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    layers: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in answer.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in layers and value:
            layers[section][option.removeprefix("default-")] = str(ast.literal_eval(value))
    return {name: " ".join(value.split()) for layer in layers.values() for name, value in layer.items()}


def _apt(release: str) -> tuple[dict[str, str], list[str]]:
    """apt's settings for fetching, and its mirrors of this release unless they are Debian's own."""
    try:
        dump = subprocess.run(
            ["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=False, timeout=60
        )
        listed = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}, []
    settings = {
        match[1]: match[2]
        for line in dump.stdout.splitlines()
        # Left out: a program of this machine, and certificates, which are a secret of their own.
        if (match := APT_SETTINGS.match(line)) and match[2] and not re.search("Auto-Detect|CAInfo", match[1])
    }
    suites = {release, f"{release}-updates", f"{release}-security"}
    mirrors = sorted({line for line in listed.stdout.splitlines() if _is_debian(line, suites)})
    own = all(line.startswith(DEBIAN) for line in mirrors)
    return settings, [] if own else [f"deb {line}" for line in mirrors]


def _is_debian(line: str, suites: set[str]) -> bool:
    words = line.split()
    return len(words) == 3 and "debian" in words[0] and words[1] in suites and words[2] == "main"


@contextlib.contextmanager
def _served(pip: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """pip's options with the addresses of folders on this disk replaced by ones that a build can reach."""
    folders: dict[str, Path] = {}

    def reachable(address: str) -> str:
        folder = _folder(address)
        if folder is None:
            return address
        token = secrets.token_urlsafe(16)
        # A page of an index in `simple` points to files beside that folder.
        folders[token] = folder.parent if address.startswith("file:") else folder
        path = f"{folder.name}/" if address.startswith("file:") else ""
        return f"http://127.0.0.1:{server.server_address[1]}/{token}/{path}"

    class Handler(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            token, _, rest = path.lstrip("/").partition("/")
            if token not in folders:
                return ""  # is no file: 404
            self.directory = str(folders[token])
            return super().translate_path(f"/{rest}")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield {
                name: " ".join(map(reachable, value.split())) if name in PIP_LISTS else value
                for name, value in pip.items()
            }
        finally:
            server.shutdown()
            thread.join()


def _folder(address: str) -> Path | None:
    """The folder on this disk that an index or a find-links means; None for anything else."""
    path = Path(unquote(urlsplit(address).path)) if address.startswith("file:") else Path(address)
    return path if path.is_absolute() and path.is_dir() else None


def _private_certificates(bundle: Path | None) -> list[bytes]:
    """The certificates of a bundle, in DER, that Debian's own package of certificates doesn't have."""
    if bundle is None:
        return []
    public = {der for path in Path("/usr/share/ca-certificates").rglob("*.crt") for der in _certificates(path)}
    return [der for der in _certificates(bundle) if der not in public]


def _certificates(path: Path) -> list[bytes]:
    text = path.read_text(encoding="utf-8", errors="replace")
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", text, re.DOTALL)
    return [ssl.PEM_cert_to_DER_cert(block) for block in blocks]
