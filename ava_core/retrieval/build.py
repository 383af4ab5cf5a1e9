"""From documents to an index: the library function behind `ava index`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.config.retrieval import RetrievalConfig
from ava_core.data.tokenizer import encode, read_tokenizer
from ava_core.retrieval.building import building_index
from ava_core.retrieval.documents import Documents
from ava_core.retrieval.embedding.embedder import Embedder
from ava_core.retrieval.embedding.kept import KeptVectors, Origins
from ava_core.retrieval.embedding.opening import open_embedder
from ava_core.retrieval.folder import Index
from ava_core.retrieval.passage import Passage
from ava_core.retrieval.splitting import split

if TYPE_CHECKING:
    from ava_core.progress import Progress

log = logging.getLogger(__name__)
CHUNK = 512
"""Passages that are embedded, and kept for an interrupted build, at once."""


@dataclass(frozen=True)
class Built:
    """Attributes:
    metrics: figures that are the same for the same inputs.
    timings: the others.
    """

    metrics: dict[str, float]
    timings: dict[str, float]


@dataclass
class _Counts:
    """What the passages came to."""

    passages: int = 0
    documents: int = 0
    bytes: int = 0
    tokens: int = 0


def build_index(
    config: RetrievalConfig,
    *,
    shards: Path,
    data: Path | None,
    model: Path | None,
    previous: Path | None,
    output: Path,
    state: Path,
    threads: int,
    progress: Progress,
) -> Built:
    """Make an index of passages in `output`, which holds no index yet.

    The same documents, settings and vectors give the same bytes, whether some were taken over or not. Vectors are kept
    in `state` as they are made: a build that was interrupted goes on with them.

    Args:
        config: the section `retrieval`.
        shards: output of `ava preprocess`: its tokenizer counts, and its training split is the text if
            `retrieval.sources` is empty.
        data: the folder given with --data, which sources are read from; may be None if no source needs it.
        model: for `retrieval.embedding = model`.
        previous: an index whose vectors are taken over for passages that are in it.
        output: an empty folder.
        state: the step's own folder, which a build that goes on finds again.
        threads: of the embedding.
        progress: shows passages.

    Raises:
        ConfigError: the embedding needs a model, and there is none.
        AvaError: a source can't be read, there is no text, or the embedding can't be had.
    """
    started = time.perf_counter()
    embedder = open_embedder(config.embedding, config.http, model, threads)
    documents = Documents(config, shards, data)
    vectors = None
    if embedder is not None:
        former = None if previous is None else Index.open(previous, embedding=embedder.identity)
        vectors = KeptVectors(embedder, state / "vectors", former)
    counts, folder = _Counts(), state / "index"
    with (
        progress.task("read", max(documents.size, 1)) as advance,
        building_index(folder, **_identity(config, embedder)) as builder,
    ):
        for chunk in _chunks(_passages(config, documents, shards, counts)):
            builder.add(chunk, None if vectors is None else vectors.of(chunk))
            counts.passages += len(chunk)
            advance(min(counts.bytes, documents.size), passages=f"{counts.passages:,}")
    for path in sorted(folder.iterdir()):
        path.rename(output / path.name)
    return _built(counts, Origins() if vectors is None else vectors.origins, output, time.perf_counter() - started)


def _identity(config: RetrievalConfig, embedder: Embedder | None) -> dict[str, Any]:
    return {
        "embedding": "" if embedder is None else embedder.identity,
        "dimension": 0 if embedder is None else embedder.dimension,
        "settings": {
            "passage_tokens": config.passage_tokens,
            "overlap_tokens": config.overlap_tokens,
            "embedding": config.embedding,
            "http": config.http.model_dump() if config.embedding == "http" else None,
        },
    }


def _passages(config: RetrievalConfig, documents: Documents, shards: Path, counts: _Counts) -> Iterator[Passage]:
    tokenizer = read_tokenizer(shards / "tokenizer")

    def count_tokens(texts: Sequence[str]) -> list[int]:
        return [len(tokens) for tokens in encode(tokenizer, texts)]

    for document, label in documents:
        passages = list(split(document, count_tokens, config.passage_tokens, config.overlap_tokens, label))
        counts.documents += 1
        counts.bytes += len(document.text.encode("utf-8", "surrogatepass"))
        counts.tokens += sum(count_tokens([passage.text for passage in passages]))
        yield from passages


def _chunks(passages: Iterator[Passage]) -> Iterator[list[Passage]]:
    while chunk := list(islice(passages, CHUNK)):
        yield chunk


def _built(counts: _Counts, origins: Origins, output: Path, seconds: float) -> Built:
    if origins.truncated:
        log.warning(
            "%d of %d passages have more tokens than the embedding reads, which leaves out their ends:"
            " lower retrieval.passage_tokens",
            origins.truncated,
            counts.passages,
        )
    return Built(
        metrics={
            "documents": counts.documents,
            "passages": counts.passages,
            "tokens_per_passage": counts.tokens / counts.passages,
            "embedded": origins.embedded,
            "taken_over": origins.taken_over,
            "truncated": origins.truncated,
            "index_bytes": sum(path.stat().st_size for path in output.rglob("*") if path.is_file()),
        },
        timings={"passages_per_second": counts.passages / seconds, "wall_seconds": seconds},
    )
