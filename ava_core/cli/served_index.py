"""The index that `ava serve` looks things up in, and who may see what in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ava_core.errors import ConfigError
from ava_core.retrieval.retriever import Retriever
from ava_core.serving.http.key_labels import FLAG, read_key_labels

log = logging.getLogger(__name__)


def open_served_index(
    index: Path | None, model: Path | None, key_labels: Path | None, keys: Sequence[str], threads: int
) -> tuple[Retriever | None, Mapping[str, frozenset[str]]]:
    """The open index, None without one, and the access labels by SHA-256 of the key that has them.

    Args:
        index: folder of `ava index`.
        model: the model that it was embedded with, if it was one of ours.
        key_labels: file with the labels.
        keys: those that the server knows.
        threads: of the embedding.

    Raises:
        ConfigError: a flag without what it belongs to, no index, or a file of labels that is wrong.
        AvaError: the embedding can't be had, or isn't the one that the index was built with.
        IntegrityError: a file of the index is missing, cut or changed.
    """
    if index is None:
        for flag, given in (("--embedding-model", model), (FLAG, key_labels)):
            if given is not None:
                raise ConfigError(f"{flag} {given}: belongs to an index: give it with --index, or leave it out")
        return None, {}
    labels = read_key_labels(key_labels, keys) if key_labels else {}
    retriever = Retriever.open(index, model=model, threads=threads, verify=True)
    there = {label for label in retriever.index.passages.labels if label}
    hidden = there.difference(*labels.values())
    if hidden:
        log.warning(
            "serve: passages of %d access labels are found by nobody, for no API key has them: give %s",
            len(hidden),
            FLAG,
        )
    return retriever, labels
