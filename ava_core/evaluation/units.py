"""The units of a text over which losses are kept: parts of its documents.

Losses of neighbouring tokens depend on each other, those of different documents hardly do. So what a comparison of
models resamples is documents (`comparison.bootstrap`), and the losses must be kept for each. Where a text has few of
them, as a corpus of plays, each is cut into parts of about PART_BYTES, and the parts are resampled instead.

Parts are cut by the bytes of the text and not by tokens, so that models with different tokenizers have the same ones. A
token belongs to the part in which its first byte lies, the boundary token after a document to its last part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from ava_core.data.shards import ShardedSplit
from ava_core.evaluation.losses import Document
from ava_core.generation.token_bytes import token_bytes

PART_BYTES = 4096
"""Bytes of a part, about; a document is cut into equal ones. Of English prose some 1,000 tokens, several times the
default context, over which most of the dependence between losses is gone."""


@dataclass(frozen=True)
class Units:
    """A split as parts of documents.

    Attributes:
        documents: in the order of the split.
        of_token: number of each token's part, counted over all documents, int64 of shape (num_tokens,); it never
            decreases.
    """

    documents: list[Document]
    of_token: np.ndarray


def divide(
    split: ShardedSplit, texts: Sequence[str], names: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> Units:
    """Cut the documents of a split into parts.

    A document whose tokens don't spell its text byte for byte (tokenizers that add or drop a space) stays in one part.

    Args:
        split: its tokens are those of `tokenizer`.
        texts: the text of each document.
        names: where each came from.
        tokenizer: tells the bytes of each token.
    """
    starts = [*split.document_starts.tolist(), split.num_tokens]
    spelt, used = token_bytes(tokenizer), np.unique(split.tokens)
    length_V = np.zeros(int(used[-1]) + 1, np.int64)
    length_V[used] = [len(spelt[token]) for token in used.tolist()]
    documents, of_token, first = [], np.empty(split.num_tokens, np.int64), 0
    for index, (text, name) in enumerate(zip(texts, names, strict=True)):
        data, here = text.encode(), slice(starts[index], starts[index + 1])
        ends_T = np.cumsum(length_V[split.tokens[here]])
        size = len(data)
        parts = max(1, round(size / PART_BYTES)) if ends_T[-1] == size else 1
        begins_T = np.concatenate([[0], ends_T[:-1]])
        part_T = np.minimum(begins_T * parts // max(size, 1), parts - 1)
        cuts = -(-np.arange(parts + 1) * size // parts)
        documents.append(
            Document(
                name=name,
                sha256=hashlib.sha256(data).hexdigest(),
                bytes=np.diff(cuts).tolist(),
                tokens=np.bincount(part_T, minlength=parts).tolist(),
            )
        )
        of_token[here] = first + part_T
        first += parts
    return Units(documents, of_token)
