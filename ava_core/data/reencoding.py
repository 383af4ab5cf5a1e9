"""A split as a model reads it, whichever tokenizer its shards were made with.

The shards keep no text, but their tokens give it back without loss. So a model can be measured on any shards: their
documents are decoded, and encoded with its own tokenizer. Bits per byte stay what they are, for they divide by the
bytes of the text, which are counted again here.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ava_core.data.shards import ShardedSplit
from ava_core.data.tokenizer import (
    decode_documents,
    encode_losslessly,
    load_tokenizer,
    read_settings,
    read_tokenizer,
    token_text,
    vocabulary_size,
)
from ava_core.data.tokenizer_identity import gives_same_ids
from ava_core.errors import AvaError, IntegrityError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelText:
    """A split in a model's own tokens.

    Attributes:
        split: its tokens are the model's, and so is its boundary token.
        documents: the text of each document.
        reencoded: the shards have other tokens.
    """

    split: ShardedSplit
    documents: list[str]
    reencoded: bool


def open_text(model: Path, shards: Path, name: str) -> ModelText:
    """Split `name` of `shards` for the model in the folder `model`.

    Raises:
        AvaError: there is no such split or tokenizer, or the model's tokenizer ends no document or loses some text.
        IntegrityError: a file can't be read, or the tokens aren't as many bytes of text as the shards say.
    """
    split = ShardedSplit.open(shards, name)
    documents = read_documents(split, shards / "tokenizer")
    if reads(model, shards, split):
        return ModelText(split, documents, reencoded=False)
    return ModelText(_reencode(split, documents, model), documents, reencoded=True)


def open_tokens(model: Path, shards: Path, name: str) -> ShardedSplit:
    """As `open_text`, for who needs no text: it is decoded only where the tokens are others."""
    split = ShardedSplit.open(shards, name)
    if reads(model, shards, split):
        return split
    return _reencode(split, read_documents(split, shards / "tokenizer"), model)


def reads(model: Path, shards: Path, split: ShardedSplit) -> bool:
    """Whether the shards' tokens mean to the model what they mean in the shards: same ids, same end of a document.

    Args:
        model: folder of the model.
        shards: output of `ava preprocess`.
        split: of these shards.
    """
    return gives_same_ids(model, shards / "tokenizer") and _boundary(model) in (None, split.boundary_token_id)


def read_documents(split: ShardedSplit, tokenizer: Path) -> list[str]:
    """The text of each document, without the boundary tokens that end them.

    Args:
        split: to be decoded.
        tokenizer: folder of the one that made its tokens.

    Raises:
        IntegrityError: its bytes aren't as many as the shards say, by which bits per byte are divided.
    """
    texts = decode_documents(split, load_tokenizer(tokenizer))
    size = sum(len(text.encode()) for text in texts)
    if size != split.num_bytes:
        raise IntegrityError(
            f"{split.name} split: its tokens are {size} bytes of text, the shards say"
            f" {split.num_bytes}: bits per byte would be wrong; run `ava preprocess` again"
        )
    return texts


def _reencode(split: ShardedSplit, documents: list[str], model: Path) -> ShardedSplit:
    tokenizer, boundary = read_tokenizer(model), _boundary(model)
    if boundary is None:
        raise AvaError(
            f"{model}: its tokenizer names no eos_token, which ends a document: name one in tokenizer_config.json"
        )
    numbered = enumerate(documents, 1)
    named = ((f"{model}: document {number} of the {split.name} split", text) for number, text in numbered)
    parts = [np.append(tokens, boundary) for tokens in encode_losslessly(tokenizer, named, boundary)]
    tokens = np.concatenate(parts)
    tokens.flags.writeable = False
    ends = np.cumsum([len(part) for part in parts])
    log.info(
        "%s split: its shards have another tokenizer: decoded, and encoded with that of %s: %s tokens, before %s",
        split.name,
        model,
        f"{len(tokens):,}",
        f"{split.num_tokens:,}",
    )
    return replace(
        split,
        tokens=tokens,
        document_starts=np.concatenate([[0], ends[:-1]]).astype(np.int64),
        vocab_size=vocabulary_size(tokenizer),
        boundary_token_id=boundary,
        padding=boundary,  # nothing is padded here
        fingerprint=hashlib.sha256(tokens.tobytes()).hexdigest()[:16],
    )


def _boundary(model: Path) -> int | None:
    """The token that ends a document, as the model's tokenizer has it."""
    token = token_text(read_settings(model).get("eos_token"))
    return read_tokenizer(model).token_to_id(token) if token else None
