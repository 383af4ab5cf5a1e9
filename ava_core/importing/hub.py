"""Models of the Hugging Face Hub, through `huggingface_hub`: its cache, its HF_HUB_OFFLINE, its token.

config.json comes first and alone, so that a model that can't be imported isn't downloaded. Pickles and code never are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ava_core.errors import AvaError, ConfigError, first_line
from ava_core.origin import TEXTS

PREFIX = "hub:"
WANTED = ("model*.safetensors", "*.json", "*.jinja", "README.md", *TEXTS)
_ADDRESS = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+|[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def fetch(address: str, check: Callable[[Path], None]) -> tuple[Path, str]:
    """The repository's files on this machine, and the commit they are of.

    Args:
        address: `hub:OWNER/NAME`, or with `@REVISION`: a branch, a tag or a commit.
        check: looks at the folder with config.json alone, and raises what stands in the way.

    Raises:
        ConfigError: it is no such address.
        AvaError: it is gated, isn't there, or can't be reached and isn't in the cache.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ConfigError(f"{address}: is no model of the hub: give hub:OWNER/NAME or hub:OWNER/NAME@REVISION")
    folder = Path()
    try:
        for wanted in (("config.json",), WANTED):
            folder = _download(match["name"], match["revision"], list(wanted))
            check(folder)
    except AvaError:
        raise
    except Exception as error:  # of the library, of requests, of the operating system
        raise AvaError(f"{address}: {_reason(error)}") from error
    return folder, folder.name


def _download(name: str, revision: str | None, wanted: list[str]) -> Path:
    """The snapshot's folder; what the hub can't be asked for is taken from the cache."""
    import httpx
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (errors.OfflineModeIsEnabled, httpx.ConnectError, httpx.TimeoutException):
        # Of a branch the library does so itself; of a commit it would list the files first.
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=True))


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "is gated: accept its terms on its page, and give your token (`hf auth login`, or HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        return "has no such revision: give a branch, a tag or a commit of its"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "is not there, or is private: check the name, or give your token (`hf auth login`, or HF_TOKEN)"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return "is not in the cache, and the hub can't be reached (or HF_HUB_OFFLINE is set): connect, or give a folder"
    return f"can't be fetched ({first_line(error)}): check the name and the network, or give a folder"
