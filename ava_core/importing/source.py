"""What is imported: a folder of safetensors on this machine, or a repository of the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_core.data.finished_tokenizer import READ as TOKENIZER
from ava_core.errors import AvaError, IntegrityError, first_line
from ava_core.files import parse_json
from ava_core.importing.hub import PREFIX, fetch
from ava_core.importing.weights import INDEX, PICKLED, SINGLE
from ava_core.origin import FILE as ORIGIN
from ava_core.origin import licence_texts
from ava_core.runtime.digests import digest_unchanged, digest_value
from ava_core.runtime.manifest import adapter_line

CONFIG, GENERATION, CARD, TRAINING, MANIFEST = (
    "config.json",
    "generation_config.json",
    "README.md",
    "training.json",
    "manifest.json",
)
READ = (CONFIG, GENERATION, CARD, TRAINING, MANIFEST, ORIGIN, *TOKENIZER)
"""What an import may look at beside weights and licences."""


@dataclass(frozen=True)
class Source:
    """Attributes:
    folder: where its files lie.
    name: `hub:OWNER/NAME`, or the folder's name: where that lies on this machine is nobody's business.
    revision: the commit; empty for a folder.
    """

    folder: Path
    name: str
    revision: str = ""

    def files(self, weights: list[Path]) -> dict[str, dict[str, Any]]:
        """Bytes and SHA-256 of every file that an import reads, by name."""
        index = [self.folder / INDEX] if (self.folder / INDEX).is_file() and weights != [self.folder / SINGLE] else []
        known = [self.folder / name for name in READ if (self.folder / name).is_file()]
        paths = sorted({*known, *licence_texts(self.folder), *weights, *index})
        return {path.name: {"bytes": path.stat().st_size, "sha256": digest_unchanged(path)} for path in paths}


def open_source(text: str) -> Source:
    """Find what is to be imported; of the hub, fetch it or find it in the cache.

    Raises:
        AvaError: it isn't there, or it is no model that can be imported; the message says what it is instead.
    """
    if text.startswith(PREFIX):
        folder, revision = fetch(text, _require_model)
        return Source(folder, text.partition("@")[0], revision)
    folder = Path(text)
    if not folder.is_dir():
        raise AvaError(f"{text}: no such folder: give one, or {PREFIX}OWNER/NAME for a model of the Hugging Face Hub")
    _require_model(folder)
    return Source(folder, folder.resolve().name)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the source's; empty if there is no such file.

    Raises:
        IntegrityError: it can't be read.
    """
    if not path.is_file():
        return {}
    try:
        value = parse_json(path.read_bytes())
    except ValueError as error:
        raise IntegrityError(f"{path}: is no JSON ({first_line(error)}): fetch it again") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{path}: is no JSON object: fetch it again")
    return value


def digest_of(files: dict[str, dict[str, Any]]) -> str:
    """One digest over all files, whatever else lies beside them."""
    return digest_value({name: file["sha256"] for name, file in files.items()})


def _require_model(folder: Path) -> None:
    """Say what a folder without config.json is."""
    if (folder / CONFIG).is_file():
        return
    names = [path.name for path in folder.iterdir() if path.is_file()]
    if line := adapter_line(folder):
        raise AvaError(f"{line}; of another maker's model with PEFT's merge_and_unload() and save_pretrained()")
    pickled = sorted(name for name in names if name.endswith(PICKLED))
    code = sorted(name for name in names if name.endswith(".py"))
    what = f"{pickled[0]} is a pickle, which is never read" if pickled else ""
    what = what or (f"{code[0]} is code, which is never run" if code else "there is no model in it")
    raise AvaError(f"{folder}: has no {CONFIG}, and {what}: give a folder as Transformers' save_pretrained leaves it")
