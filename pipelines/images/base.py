"""The base image: from a registry by its digest, or Debian built here by mmdebstrap where no registry can be had."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from ava_core.errors import AvaError
from pipelines.images import engine
from pipelines.images.package_clients import build_secrets, read_sources

RELEASE = "bookworm"
DOCKERFILE = Path(__file__).parents[2] / "docker" / "Dockerfile"
DIGEST = "@sha256:"
LOCAL_BASE = f"ava-base:{RELEASE}"
INCLUDED = "ca-certificates,python3,usr-is-merged"
MERGED_USR = "/usr/share/mmdebstrap/hooks/merged-usr"
"""Of mmdebstrap's own hooks: /bin is /usr/bin from the start, where a package with perl would make it so later."""
DATE = "315532800"
"""1980-01-01 for every file that a package doesn't date itself, as in docker/finish.sh."""
CLEANED = (
    # What mmdebstrap copied from this machine, and Debian's own mirrors instead of the ones it was built from.
    'rm -f "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/etc/apt/apt.conf.d/99mmdebstrap'
    ' "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap "$1"/etc/apt/sources.list.d/*',
    "printf 'deb http://deb.debian.org/debian%s main\\n' "
    f"' {RELEASE}' ' {RELEASE}-updates' '-security {RELEASE}-security' >\"$1\"/etc/apt/sources.list",
    'rm -rf "$1"/usr/share/man "$1"/usr/share/info "$1"/usr/share/locale',
)


def choose(given: str | None, show: Callable[[str], None]) -> str:
    """The base to build on: the one given, one that is here, one from the registry, one built here; in this order.

    Raises:
        AvaError: none can be had.
    """
    if given:
        found = engine.inspect(given)
        if not found and DIGEST not in given:
            raise AvaError(
                f"{given}: no such image here, and from a registry one is taken by its digest only, "
                f"which no later push can change: {given}@sha256:..."
            )
        if not found and not _pull(given):
            raise AvaError(
                f"{given}: no such image here, and no registry gives it: leave out --base to build Debian here"
            )
        return given
    registry_base = read_default()
    if not engine.inspect(LOCAL_BASE) and (engine.inspect(registry_base) or _pull(registry_base)):
        return registry_base
    return ensure(show)


def read_default() -> str:
    """The base that docker/Dockerfile names: Debian's image in a registry, by digest."""
    found = re.search(r"^ARG BASE=(\S+)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise AvaError(f"{DOCKERFILE}: has no line `ARG BASE=`: git checkout docker/Dockerfile")
    return found[1]


def ensure(show: Callable[[str], None] = print) -> str:
    """The name of the base that is built here, which has Python; built first if the engine lacks it."""
    if not engine.inspect(LOCAL_BASE):
        show(f"{LOCAL_BASE}: building Debian {RELEASE} with mmdebstrap")
        build(LOCAL_BASE)
    return LOCAL_BASE


def build(name: str) -> None:
    """A minimal Debian as an image of one layer; the same bytes as long as Debian's mirrors have the same packages.

    Raises:
        AvaError: mmdebstrap is missing or fails.
    """
    program = shutil.which("mmdebstrap")
    if program is None:
        raise AvaError(
            f"{name}: mmdebstrap is not installed: apt-get install mmdebstrap, or name a Debian 12 image with --base"
        )
    with build_secrets(read_sources(RELEASE)) as secrets, tempfile.TemporaryDirectory(prefix="ava-base-") as folder:
        archive, log = Path(folder, "base.tar"), Path(folder, "log")
        command = [program, "--variant=minbase", "--components=main", f"--include={INCLUDED}"]
        command += [f"--hook-dir={MERGED_USR}", "--dpkgopt=force-unsafe-io"]
        if "apt_conf" in secrets:
            command.append(f"--aptopt={secrets['apt_conf']}")
        if "ca" in secrets:
            command.append(f'--aptopt=Acquire::https::CAInfo "{secrets["ca"]}"')
        command += [f"--customize-hook={hook}" for hook in CLEANED]
        command += [RELEASE, str(archive), *([str(secrets["apt_sources"])] if "apt_sources" in secrets else [])]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SOURCE_DATE_EPOCH": DATE, "TMPDIR": folder}
        with log.open("wb") as file:
            done = subprocess.run(command, env=environment, stdout=file, stderr=file, check=False)
        if done.returncode:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise AvaError(f"mmdebstrap: {lines[-1] if lines else f'exit code {done.returncode}'}")
        engine.ask("import", "--change", 'CMD ["/bin/sh"]', str(archive), name, timeout=300.0)


def _pull(name: str) -> bool:
    try:
        engine.ask("pull", "--quiet", name, timeout=120.0)
    except AvaError:
        return False
    return True
