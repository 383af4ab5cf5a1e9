"""Writing token shards: what `shards.py` describes and reads."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ava_core.data.shards import INFO_NAME, SplitInfo, SplitsInfo
from ava_core.errors import AvaError
from ava_core.files import write_json

DATASETS_NAME = "dataset_dict.json"
"""Where `datasets` looks for the names of the splits."""
BLOCK_TOKENS = 65_536
"""Tokens in one row, at most: a row is what a shard can be cut at."""


@dataclass(frozen=True)
class TokenizedDocument:
    """One document as tokens, without its boundary token.

    Attributes:
        name: where it came from.
        tokens: integer array of shape (n,).
        num_bytes: UTF-8 bytes of its text.
    """

    name: str
    tokens: np.ndarray
    num_bytes: int


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every token: uint16 up to 65,536 entries, then int32."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)


def write_split(
    folder: Path, documents: Iterable[TokenizedDocument], *, vocab_size: int, boundary_token_id: int, shard_tokens: int
) -> SplitInfo:
    """Write one split to `folder` as Arrow shards of at most `shard_tokens` tokens.

    The bytes depend on the arguments alone: the fingerprint that `datasets` would draw is set from the content.

    Raises:
        AvaError: there is no document.
    """
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    dtype = token_dtype(vocab_size)
    block = min(BLOCK_TOKENS, shard_tokens)
    blocks: list[np.ndarray] = []
    ids: list[int] = []
    names: list[str] = []
    num_bytes = num_documents = 0
    for document in documents:
        tokens = np.append(document.tokens, boundary_token_id).astype(dtype)
        for start in range(0, len(tokens), block):
            blocks.append(tokens[start : start + block])
            ids.append(num_documents)
            names.append(document.name)
        num_bytes += document.num_bytes
        num_documents += 1
    if not blocks:
        raise AvaError(f"{folder.name}: no document: a split needs at least one")

    ends = np.cumsum([len(item) for item in blocks])
    stream = np.concatenate(blocks)
    offsets = pa.array(np.concatenate([[0], ends]), type=pa.int64())
    tokens_column = pa.LargeListArray.from_arrays(offsets, pa.array(stream))
    if len(stream) < 2**31:
        tokens_column = tokens_column.cast(pa.list_(tokens_column.type.value_type))
    table = pa.table({"document_id": pa.array(ids, pa.int32()), "name": pa.array(names), "tokens": tokens_column})
    num_shards = _count_shards(ends, shard_tokens)
    fingerprint = hashlib.sha256(json.dumps([ids, names]).encode() + stream.tobytes()).hexdigest()[:16]
    dataset = Dataset(InMemoryTable(table), fingerprint=fingerprint)
    save_quietly(dataset, folder, num_shards)
    return SplitInfo(num_bytes=num_bytes, num_tokens=len(stream), num_documents=num_documents, num_shards=num_shards)


def _count_shards(ends: np.ndarray, shard_tokens: int) -> int:
    """Fewest shards that hold at most `shard_tokens` each when `datasets` deals the rows out evenly."""
    rows = len(ends)
    for shards in range(math.ceil(int(ends[-1]) / shard_tokens), rows):
        cuts = np.arange(shards + 1) * (rows // shards) + np.minimum(np.arange(shards + 1), rows % shards)
        totals = np.diff(np.concatenate([[0], ends])[cuts])
        if totals.max() <= shard_tokens:
            return shards
    return rows


def save_quietly(dataset, folder: Path, num_shards: int) -> None:
    """`Dataset.save_to_disk` without its own progress bar; ours shows the split."""
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        dataset.save_to_disk(folder, num_shards=num_shards)
    finally:
        if shown:
            enable_progress_bar()


def write_splits_info(folder: Path, info: SplitsInfo) -> None:
    """Write `folder`/splits.json, and dataset_dict.json as `DatasetDict.save_to_disk` does."""
    write_json(folder / INFO_NAME, {key: value for key, value in asdict(info).items() if value is not None})
    (folder / DATASETS_NAME).write_text(json.dumps({"splits": list(info.splits)}) + "\n")
