"""The documents of an index: those of `retrieval.sources`, or of the training split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ava_core.config.retrieval import RetrievalConfig
from ava_core.data.shards import ShardedSplit, document_names
from ava_core.data.sources import digest_opened, open_each
from ava_core.data.sources.source import Document
from ava_core.data.tokenizer import decode_documents, load_tokenizer

SPLIT = "train"
"""What may be looked up by default. The other two splits are scored, and must not be found."""


class Documents:
    """Iterates over each document with its access label, in the order of their sources; empty ones are left out.

    Args:
        config: the section `retrieval`.
        shards: output of `ava preprocess`.
        data: the folder given with --data.

    Attributes:
        size: bytes that there are to read, about, to show progress; 0 where that isn't known before.

    Raises:
        AvaError: a source or the split is missing or, while it is read, can't be.
    """

    def __init__(self, config: RetrievalConfig, shards: Path, data: Path | None) -> None:
        self._entries, self._shards = config.sources, shards
        self._sources = open_each(config.sources, config.document_separator, data)
        self._split = None if config.sources else ShardedSplit.open(shards, SPLIT)
        self.size = sum(source.size for source in self._sources) if self._split is None else self._split.num_bytes

    def __iter__(self) -> Iterator[tuple[Document, str]]:
        if self._split is not None:
            texts = decode_documents(self._split, load_tokenizer(self._shards / "tokenizer"))
            for name, text in zip(document_names(self._shards, SPLIT), texts, strict=True):
                yield Document(name, text), ""
        for entry, source in zip(self._entries, self._sources, strict=True):
            for document in source.documents():
                if document.text.strip():
                    yield document, entry.label or ""


def digest_documents(config: RetrievalConfig, data: Path | None) -> str | None:
    """SHA-256 over what `retrieval.sources` hold; None where the documents are those of the shards."""
    if not config.sources:
        return None
    return digest_opened(open_each(config.sources, config.document_separator, data))
