"""The Docker engine, through its command line: a call gives what it prints, or one line of error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ava_core.errors import AvaError

LAST_CLIENT_WITH_BUILDKIT = 22
"""Clients up to this major version speak to the engine's own BuildKit; later ones need the plugin buildx."""

DEBIAN_CLIENT = "/usr/bin"
"""Where Debian's client lies, should PATH not lead there."""


def ask(*arguments: str, timeout: float = 60.0) -> str:
    """What `docker ARGUMENTS` prints, without white space around it.

    Raises:
        AvaError: it failed, with its own words, and the way out where there is no engine.
    """
    try:
        answer = subprocess.run(
            ["docker", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise AvaError("docker: no such program: install Docker (Debian: apt-get install docker.io)") from error
    except subprocess.TimeoutExpired as error:
        raise AvaError(f"docker {arguments[0]}: no answer within {timeout:g} s: is the engine well?") from error
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
        raise AvaError(f"docker {arguments[0]}: {lines[-1]}")
    return answer.stdout.strip()


def ensure() -> None:
    """Refuse to go on without an engine that answers.

    Raises:
        AvaError: there is none.
    """
    try:
        ask("version", "--format", "{{.Server.Version}}", timeout=20.0)
    except AvaError as error:
        if "no such program" in str(error):
            raise
        raise AvaError(
            f"no Docker engine answers ({error}): start it (Debian, as root: apt-get install docker.io, then dockerd),"
            " or name another with DOCKER_HOST"
        ) from error


def inspect(image: str) -> dict[str, Any] | None:
    """What the engine knows of an image; None if it doesn't have it."""
    try:
        found: list[dict[str, Any]] = json.loads(ask("image", "inspect", image))
    except AvaError as error:
        if "no such image" in str(error).lower():
            return None
        raise
    return found[0]


def build_command() -> tuple[list[str], dict[str, str]]:
    """The beginning of a command that builds with BuildKit, and the variables it needs.

    A client since version 23 builds with the plugin buildx, an older one by itself. Debian has no buildx, but a client
    that needs none, which may lie behind another one on PATH.

    Raises:
        AvaError: no client here can use BuildKit, which build secrets need.
    """
    clients = _clients()
    for client in clients:
        if _runs([client, "buildx", "version"]):
            # Attestations would hold the time of the build; the host's network must be allowed to some builders.
            return [client, "buildx", "build", "--load", "--allow=network.host"], {
                "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"
            }
    for client in clients:
        if 0 < _major(client) <= LAST_CLIENT_WITH_BUILDKIT:
            return [client, "build"], {"DOCKER_BUILDKIT": "1"}
    raise AvaError(
        f"{', '.join(clients) or 'docker'}: can't use BuildKit: install the plugin buildx, or Debian's docker.io, whose"
        " client needs none"
    )


def _clients() -> list[str]:
    folders = [*os.environ.get("PATH", "").split(os.pathsep), DEBIAN_CLIENT]
    found = [shutil.which("docker", path=folder) for folder in folders if folder]
    return list({str(Path(path).resolve()): path for path in found if path}.values())


def _runs(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _major(client: str) -> int:
    """Major version of a client; 0 if it doesn't say."""
    try:
        answer = subprocess.run(
            [client, "--version"], capture_output=True, text=True, check=False, timeout=20
        ).stdout.partition("version ")[2]
        return int(answer.partition(".")[0])
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return 0
