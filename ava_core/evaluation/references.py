"""References for bits per byte: the text that the tokens of a split stand for, and its size under bz2."""

from __future__ import annotations

import bz2

from transformers import PreTrainedTokenizerBase

from ava_core.data.shards import ShardedSplit
from ava_core.data.tokenizer import decode_documents
from ava_core.errors import IntegrityError


def decode_split(split: ShardedSplit, tokenizer: PreTrainedTokenizerBase) -> bytes:
    """The UTF-8 text of a split, its documents one after the other, without the boundary tokens that end them.

    Raises:
        IntegrityError: its bytes aren't as many as the shards say, by which bits per byte are divided.
    """
    text = "".join(decode_documents(split, tokenizer)).encode()
    if len(text) != split.num_bytes:
        raise IntegrityError(
            f"{split.name} split: its tokens are {len(text)} bytes of text, the shards say"
            f" {split.num_bytes}: bits per byte would be wrong; run `ava preprocess` again"
        )
    return text


def bz2_bits_per_byte(text: bytes) -> float:
    """Bits that bz2 at its best level needs for a byte of the text. It sees the text alone, no training split."""
    return 8 * len(bz2.compress(text, 9)) / len(text)
