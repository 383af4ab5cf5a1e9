"""Whether two tokenizers give a text the same ids: what models, shards and evaluations of one another must agree on.

A tokenizer is named by the SHA-256 of its tokenizer.json, which stands in the manifests of shards
(`tokenizer/tokenizer.json`) and of models. Files that differ may still mean the same: Transformers writes how it would
pad, truncate and frame a text into them, none of which changes the ids of the text itself.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ava_core.data.tokenizer import FILE, read_tokenizer
from ava_core.errors import AvaError, ConfigError

FRAMING = ("version", "truncation", "padding", "post_processor")
"""Keys of tokenizer.json that `data.tokenizer.encode` doesn't follow."""


def digest_of(folder: Path) -> str:
    """What names the tokenizer in `folder`: SHA-256 of its tokenizer.json.

    Raises:
        AvaError: there is none.
    """
    path = folder / FILE
    if not path.is_file():
        raise AvaError(f"{path}: no such file: restore the folder, or run the step that made it again")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def gives_same_ids(first: Path, second: Path) -> bool:
    """Whether the tokenizers in two folders give every text the same ids.

    Raises:
        AvaError: a folder has no tokenizer.json.
        IntegrityError: one can't be read.
    """
    paths = first / FILE, second / FILE
    if all(path.is_file() for path in paths) and paths[0].read_bytes() == paths[1].read_bytes():
        return True
    return _meaning(first) == _meaning(second)


def is_extension(base: Path, extended: Path) -> bool:
    """Whether `extended` holds the tokenizer in `base`, every entry with its id, and maybe further entries.

    Then a model over `base` understands the tokens of `extended` once it has rows for the further ones
    (`ava_core.models.vocabulary.grow_vocabulary`). Raises as `gives_same_ids`.
    """
    if gives_same_ids(base, extended):
        return True
    ours, theirs = _meaning(base), _meaning(extended)
    entries = [{**_vocabulary(part), **_added(part)} for part in (ours, theirs)]
    rules = [
        {key: value for key, value in part.items() if key not in ("model", "added_tokens")} for part in (ours, theirs)
    ]
    models = [{key: value for key, value in part["model"].items() if key != "vocab"} for part in (ours, theirs)]
    return rules[0] == rules[1] and models[0] == models[1] and entries[0].items() <= entries[1].items()


def require_extension(model: Path, shards: Path) -> None:
    """Refuse shards on which a model can't go on: their tokenizer must be the model's, or that with entries added.

    Args:
        model: a folder with the model's tokenizer.
        shards: output of `ava preprocess`.

    Raises:
        ConfigError: it is another tokenizer.
        AvaError: one of them has none.
        IntegrityError: one can't be read.
    """
    if not is_extension(model, shards / "tokenizer"):
        raise ConfigError(
            f"{shards}: their tokenizer is not that of {model}, whose weights would mean other tokens: preprocess the"
            f" text with the model's (--set tokenizer.from={model})"
        )


def _meaning(folder: Path) -> dict[str, Any]:
    """What decides the ids, with the defaults that older files leave out, as this version of `tokenizers` writes it."""
    content = json.loads(read_tokenizer(folder).to_str())
    return {key: value for key, value in content.items() if key not in FRAMING}


def _vocabulary(content: dict[str, Any]) -> dict[str, int]:
    """Ids of the model's own entries; a Unigram model lists them by id, with their scores."""
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return vocabulary
    return {f"{entry}\t{score}": number for number, (entry, score) in enumerate(vocabulary)}


def _added(content: dict[str, Any]) -> dict[str, int]:
    return {token["content"]: token["id"] for token in content["added_tokens"]}
