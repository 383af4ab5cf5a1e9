"""The stages of preprocessing. The result of each is durable: an interrupted run resumes after the last finished one.

Cleaned documents, the positions that deduplication keeps, the tokenizer and each split's shards are folders in the work
folder; a resumed run ends with the same bytes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ava_core.config.data import DataConfig
from ava_core.config.tokenizer import TokenizerConfig
from ava_core.data.cleaned import DOCUMENTS, Column, clean_documents, join_parts, read_report
from ava_core.data.deduplication import deduplicate
from ava_core.data.durable import DurableFolders
from ava_core.data.finished_tokenizer import take_tokenizer
from ava_core.data.shard_writing import TokenizedDocument, token_dtype, write_split
from ava_core.data.shards import SPLITS, SplitInfo
from ava_core.data.sources.source import Source
from ava_core.data.splitting import Piece, split_documents
from ava_core.data.tokenizer import (
    SpecialIds,
    encode,
    encode_losslessly,
    read_tokenizer,
    save_tokenizer,
    special_ids,
    train_tokenizer,
)
from ava_core.errors import AvaError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ava_core.progress import Progress

log = logging.getLogger(__name__)
SAMPLES, SAMPLE_CHARACTERS = 64, 20_000
"""Documents on which a finished tokenizer is tried before all are encoded, and how much of each."""


def part_folder(index: int, count: int) -> str:
    """Name of the folder with the cleaned documents of part `index`, from 1, of `count`."""
    return f"cleaned-{index}-of-{count}"


@dataclass(frozen=True)
class SplitShards:
    """The shards of one split.

    Attributes:
        folder: holds the Arrow files.
        dtype: NumPy type of the stored tokens.
        info: counts.
    """

    folder: Path
    dtype: str
    info: SplitInfo


@dataclass
class Stages:
    """The stages, each computed when its result is first needed, unless an earlier run has finished it.

    A stage computes its inputs before its clock starts, so that its seconds are its own.

    Attributes:
        config: the section `data`.
        tokenizer_config: the section `tokenizer`.
        sources: what is read.
        durable: the results of the stages.
        progress: shows progress.
        finished: a finished tokenizer to take; None: one is learned.
    """

    config: DataConfig
    tokenizer_config: TokenizerConfig
    sources: list[Source]
    durable: DurableFolders
    progress: Progress
    finished: Path | None = None

    @cached_property
    def _cleaned(self) -> Path:
        return self.durable.get("cleaned", self._clean)

    def _clean(self, folder: Path) -> None:
        parts = self._parts
        if parts:
            log.info("cleaned documents: taken up from %d parts", len(parts))
            report = join_parts(parts, folder)
        else:
            report = clean_documents(self.config, self.sources, folder, self.progress)
        if not report["documents_out"]:
            raise AvaError(_nothing_left(report))

    @cached_property
    def _parts(self) -> list[Path]:
        """The folders of `clean_part`, in order, if all parts of some number of them are there."""
        for first in self.durable.root.glob("cleaned-1-of-*"):
            count = int(first.name.rpartition("-")[-1])
            parts = [self.durable.root / part_folder(index, count) for index in range(1, count + 1)]
            if all(part.is_dir() for part in parts):
                return parts
        return []

    @cached_property
    def cleaning_report(self) -> dict[str, Any]:
        """What the cleaning filters counted."""
        return read_report(self._cleaned)

    @cached_property
    def _names(self) -> Column:
        return Column.open(self._cleaned / DOCUMENTS, "name")

    @cached_property
    def _texts(self) -> Column:
        return Column.open(self._cleaned / DOCUMENTS, "text")

    @cached_property
    def _deduplicated(self) -> dict[str, Any]:
        _ = self._cleaned
        return _read_json(self.durable.get("deduplicated", self._deduplicate) / "result.json")

    def _deduplicate(self, folder: Path) -> None:
        with self.progress.task("deduplicate", len(self._texts)) as advance:

            def documents() -> Iterator[tuple[str, str]]:
                for position, pair in enumerate(zip(self._names, self._texts, strict=True)):
                    advance(position)
                    yield pair

            result = deduplicate(documents(), self.config.deduplication)
            advance(len(self._texts))
        content = {"kept": result.kept, "report": result.report()}
        (folder / "result.json").write_text(json.dumps(content, ensure_ascii=False))

    @property
    def deduplication_report(self) -> dict[str, Any]:
        """What deduplication removed."""
        return self._deduplicated["report"]

    @cached_property
    def _pieces(self) -> dict[str, list[Piece]]:
        """The pieces of each split; positions count among all cleaned documents."""
        kept = self._deduplicated["kept"]
        pieces = split_documents(self._texts.at(kept), self.config.split)
        return {
            name: [Piece(kept[piece.document], piece.start, piece.end) for piece in split]
            for name, split in pieces.items()
        }

    def _text(self, piece: Piece) -> str:
        return self._texts[piece.document][piece.start : piece.end]

    @cached_property
    def tokenizer_folder(self) -> Path:
        """The folder with the tokenizer's files. A finished one needs no text: what is wrong with it shows at once."""
        if self.finished is not None:
            source = self.finished
            return self.durable.get("tokenizer", lambda folder: take_tokenizer(source, folder))
        _ = self._pieces
        return self.durable.get("tokenizer", self._train_tokenizer)

    def _train_tokenizer(self, folder: Path) -> None:
        pieces = self._pieces["train"]
        with self.progress.task("train the tokenizer", 1) as advance:
            tokenizer = train_tokenizer((self._text(piece) for piece in pieces), self.tokenizer_config)
            advance(1, entries=f"{tokenizer.get_vocab_size():,}")
        asked = self.tokenizer_config.vocab_size
        if tokenizer.get_vocab_size() < asked:
            log.warning(
                "tokenizer.vocab_size = %d: the training split has too few pairs that occur tokenizer.min_frequency ="
                " %d times: the tokenizer has %d entries",
                asked,
                self.tokenizer_config.min_frequency,
                tokenizer.get_vocab_size(),
            )
        save_tokenizer(tokenizer, folder)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.tokenizer_folder)

    @cached_property
    def special(self) -> SpecialIds:
        """The tokenizer's boundary and padding, and its size."""
        return special_ids(self.tokenizer_folder)

    def check_samples(self) -> None:
        """Refuse a finished tokenizer that loses something of the text, on few of the documents, before all of them.

        Raises:
            AvaError: a sample doesn't come back; names the document.
        """
        pieces = [piece for name in SPLITS for piece in self._pieces[name]]
        chosen = pieces[:: -(-len(pieces) // SAMPLES)]
        texts = ((self._names[piece.document], self._text(piece)[:SAMPLE_CHARACTERS]) for piece in chosen)
        for _ in encode_losslessly(self._tokenizer, texts, self.special.boundary):
            pass

    def shards(self, name: str) -> SplitShards:
        """The shards of one split."""
        _ = self._tokenizer
        folder = self.durable.get(f"split-{name}", lambda partial: self._write_shards(name, partial))
        fields = _read_json(folder / "info.json")
        return SplitShards(folder / "shards", fields["dtype"], SplitInfo(**fields["info"]))

    def _write_shards(self, name: str, folder: Path) -> None:
        pieces = self._pieces[name]
        with self.progress.task(f"tokenise {name}", len(pieces)) as advance:

            def documents() -> Iterator[TokenizedDocument]:
                encoded = self._encode(pieces)
                for position, (piece, tokens) in enumerate(zip(pieces, encoded, strict=True)):
                    advance(position)
                    size = len(self._text(piece).encode())
                    yield TokenizedDocument(self._names[piece.document], tokens, size)

            info = write_split(
                folder / "shards",
                documents(),
                vocab_size=self.special.vocab_size,
                boundary_token_id=self.special.boundary,
                shard_tokens=self.config.shard_tokens,
            )
            advance(len(pieces), tokens=f"{info.num_tokens:,}")
        content = {"dtype": token_dtype(self.special.vocab_size).name, "info": asdict(info)}
        (folder / "info.json").write_text(json.dumps(content))

    def _encode(self, pieces: list[Piece]) -> Iterator[np.ndarray]:
        """The tokens of each piece; a finished tokenizer may lose something, so its texts are compared."""
        if self.finished is None:
            return encode(self._tokenizer, map(self._text, pieces))
        documents = ((self._names[piece.document], self._text(piece)) for piece in pieces)
        return encode_losslessly(self._tokenizer, documents, self.special.boundary)

    def timings(self, bytes_in: int) -> dict[str, float]:
        """Seconds of each stage, and the rate over all of them."""
        seconds = {
            "clean_seconds": sum(map(self.durable.seconds, ["cleaned", *(part.name for part in self._parts)])),
            "deduplicate_seconds": self.durable.seconds("deduplicated"),
            "tokenizer_seconds": self.durable.seconds("tokenizer"),
            "shards_seconds": sum(self.durable.seconds(f"split-{name}") for name in SPLITS),
        }
        rate = bytes_in / 1e6 / max(sum(seconds.values()), 1e-9)
        return {name: round(value, 3) for name, value in seconds.items()} | {"megabytes_per_second": round(rate, 3)}


def _nothing_left(report: dict[str, Any]) -> str:
    if not report["documents_in"]:
        return "data.sources: hold no document: give files with text"
    dropped = {item["name"]: item["documents_in"] - item["documents_out"] for item in report["filters"]}
    reasons = ", ".join(f"{name} dropped {count}" for name, count in dropped.items() if count)
    return (
        f"no document is left of {report['documents_in']} after cleaning ({reasons}): relax data.cleaning, or give"
        " other text"
    )


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text())
