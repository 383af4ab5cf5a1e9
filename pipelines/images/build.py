"""One image: build it, prove that it starts, look through its layers, name it and record it."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ava_core
from ava_core.errors import AvaError
from components.image import RECORD
from pipelines.images import base, engine, layers, record, sbom
from pipelines.images.package_clients import PROXY_VARIABLES, Sources, build_secrets, read_sources

TARGETS = ("cpu", "gpu")
ROOT = Path(__file__).parents[2]
STAGE = re.compile(r"^#\d+ \[(?P<stage>[a-z]+(?:-[a-z]+)? +\d+/\d+)\] (?P<instruction>(?:COPY|RUN).*)$")
"""A line of BuildKit's plain progress that begins an instruction of a named stage."""
SHOWN_COMMAND = 70
LOADED = ("datasets", "deepspeed", "matplotlib.pyplot", "mlflow", "onnxruntime", "onnxscript", "torch", "transformers")
"""Libraries of the steps that are more than Python: a file that they miss shows when they are loaded."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What the image is made from, as labels say it.

    Attributes:
        revision: the commit, with `-dirty` behind it if files differ; empty without git.
        created: the commit's date, ISO 8601.
    """

    revision: str
    created: str


def build(target: str, *, chosen_base: str | None, fresh: bool, show: Callable[[str], None]) -> dict[str, Any]:
    """Build, check, name and record one image, unless the engine has it already from the very same files.

    Args:
        target: `cpu` or `gpu`.
        chosen_base: the base image; None: see `pipelines.images.base.choose`.
        fresh: build anew, without the layers of earlier builds.
        show: is given each line to show.

    Returns:
        The image's entry in build/images.json.

    Raises:
        AvaError: no engine, a failing build, an image that doesn't start or that holds a secret of the build.
    """
    engine.ensure()
    chosen = base.choose(chosen_base, show)
    found = engine.inspect(chosen)
    commit = read_commit(ROOT)
    settings = {"target": target, "base": found["Id"] if found else "", "revision": commit.revision, "name": chosen}
    inputs = record.digest_inputs(ROOT, settings)
    before = record.read().get(target, {})
    name = f"ava-moe:{target}"
    if not fresh and before.get("inputs") == inputs and _has(name, before.get("id")):
        show(f"{name}: up to date: {before['id']}")
        return before
    sources = read_sources(base.RELEASE)
    identity = _run_build(target, chosen, labels(chosen, found, commit), sources, fresh, show)
    show(f"{name}: built: {_prove(identity)}")
    contents = layers.read(identity, sources.traces())
    if contents.leaks:
        raise AvaError(
            f"{identity}: the layers hold what the build was told in secret: {'; '.join(contents.leaks[:5])}"
        )
    bill = RECORD.with_name(f"sbom-{target}.cdx.json")
    created = commit.created or "1980-01-01T00:00:00+00:00"
    bill.write_text(
        sbom.build(name="ava-moe", version=ava_core.__version__, identity=identity, created=created, contents=contents),
        encoding="utf-8",
    )
    engine.ask("tag", identity, name)
    image, under = engine.inspect(identity), engine.inspect(chosen)
    size, base_size = (int(known["Size"]) if known else 0 for known in (image, under))
    same = before.get("id") == identity
    entry = {
        "name": name,
        "id": identity,
        "digest": before.get("digest") if same else None,
        "inputs": inputs,
        "base": chosen,
        "revision": commit.revision,
        "bytes": size,
        "bytes_beyond_base": size - base_size,
    }
    record.write(target, entry)
    show(f"{name}: no layer holds one of the {len(sources.traces())} traces of the build's secrets")
    show(f"{name}: {size / 1e9:.2f} GB, {(size - base_size) / 1e9:.2f} GB more than {chosen}; packages: {bill}")
    return entry


def labels(chosen: str, found: Mapping[str, Any] | None, commit: Commit) -> dict[str, str]:
    """The labels that only the builder knows; names of the OCI image specification (annotations.md)."""
    known = {
        "version": ava_core.__version__,
        "revision": commit.revision,
        "created": commit.created,
        "base.name": chosen,
        "base.digest": found["Id"] if found else "",
    }
    return {f"org.opencontainers.image.{name}": value for name, value in known.items() if value}


def push(target: str, repository: str, show: Callable[[str], None]) -> dict[str, Any]:
    """Push a recorded image and record the digest that the registry gave it.

    Args:
        target: which image.
        repository: where to, without a tag: `registry.example/team/ava`.

    Raises:
        AvaError: it wasn't built, or the push fails.
    """
    entry = record.read().get(target)
    if entry is None:
        raise AvaError(f"{target}: no image was built: python -m pipelines.images --target {target}")
    tag = f"{repository}:{ava_core.__version__}-{target}"
    engine.ask("tag", entry["id"], tag)
    engine.ask("push", "--quiet", tag, timeout=3600.0)
    known = engine.inspect(entry["id"]) or {}
    digest = next((found for found in known.get("RepoDigests", []) if found.startswith(f"{repository}@")), None)
    if digest is None:
        raise AvaError(f"{tag}: pushed, but the engine knows no digest of it")
    entry = {**entry, "digest": digest}
    record.write(target, entry)
    show(f"pushed {tag}: {digest}")
    return entry


def size_table(image: str, rows: int = 25) -> list[str]:
    """What an image's bytes are, largest part first."""
    sizes: Counter[str] = layers.read(image, {}).sizes
    shown = sizes.most_common(rows)
    rest = sizes.total() - sum(count for _, count in shown)
    lines = [f"{count / 1e6:9.1f} MB  {part}" for part, count in shown]
    return [
        *lines,
        f"{rest / 1e6:9.1f} MB  {len(sizes) - len(shown)} smaller parts",
        f"{sizes.total() / 1e6:9.1f} MB  all",
    ]


def read_commit(root: Path) -> Commit:
    """The commit of a checkout."""
    revision, created = (_git(root, "log", "-1", f"--format={form}") for form in ("%H", "%cI"))
    dirty = revision and _git(root, "status", "--porcelain", "--untracked-files=no")
    return Commit(revision=f"{revision}-dirty" if dirty else revision, created=created)


def _git(root: Path, *arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _run_build(
    target: str,
    chosen: str,
    marks: Mapping[str, str],
    sources: Sources,
    fresh: bool,
    show: Callable[[str], None],
) -> str:
    """Run `docker build`; the id of the image that it made."""
    client, variables = engine.build_command()
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    log, identity = RECORD.with_name(f"image-{target}.log"), RECORD.with_name(f"image-{target}.id")
    # The host's network: indexes on this machine's disk are served on its loopback address.
    command = [*client, "--network", "host", "--progress", "plain", "--file", str(ROOT / "docker" / "Dockerfile")]
    command += ["--target", target, "--build-arg", f"BASE={chosen}", "--iidfile", str(identity)]
    for name, value in marks.items():
        command += ["--label", f"{name}={value}"]
    environment = {**os.environ, **variables}
    for name in PROXY_VARIABLES:
        if os.environ.get(name):
            command += ["--build-arg", name]  # by name: the client takes the value from its environment
    if any(os.environ.get(name) for name in PROXY_VARIABLES):
        for name in ("NO_PROXY", "no_proxy"):
            environment[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
            command += ["--build-arg", name]
    if fresh:
        command.append("--no-cache")
    with build_secrets(sources) as secrets:
        for name, path in secrets.items():
            command += ["--secret", f"id={name},src={path}"]
        code = _follow([*command, str(ROOT)], environment, log, show)
    if code:
        raise AvaError(f"docker build: exit code {code}: {_last_words(log)} (log: {log})")
    return identity.read_text().strip()


def _follow(command: list[str], environment: Mapping[str, str], log: Path, show: Callable[[str], None]) -> int:
    """Run a command with its output in a log; show the instructions as they begin."""
    with log.open("w", encoding="utf-8", buffering=1) as file:  # by lines: one follows it
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        shown = set()  # BuildKit repeats an instruction's head when it goes on after another one's lines
        try:
            for line in process.stdout or ():
                file.write(line)
                if (match := STAGE.match(line.rstrip("\n"))) and match["stage"] not in shown:
                    shown.add(match["stage"])
                    show(f"  {match['stage']}: {_shorten(match['instruction'])}")
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)


def _shorten(instruction: str) -> str:
    """An instruction without its mounts, in at most `SHOWN_COMMAND` characters."""
    text = " ".join(word for word in instruction.split() if not word.startswith("--mount="))
    return text if len(text) <= SHOWN_COMMAND else text[: SHOWN_COMMAND - 3] + "..."


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line or "error:" in line.lower()]
    return (errors or lines or ["it said nothing"])[-1]


def _prove(identity: str) -> str:
    """What `ava --version` says in the image, once the libraries that the steps use could be loaded.

    Under a user id that the image doesn't know, without network, and with nothing to write to but /tmp.
    """
    sandboxed = ["run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", "--user=12345:0", identity]
    engine.ask(*sandboxed, "python", "-c", f"import {', '.join(LOADED)}", timeout=300.0)
    return engine.ask(*sandboxed, "ava", "--version", timeout=120.0)


def _has(name: str, identity: object) -> bool:
    known = engine.inspect(name)
    return known is not None and known["Id"] == identity
