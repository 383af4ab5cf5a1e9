"""From sources to shards: the library function behind `ava preprocess`.

What is finished of each stage is durable in the state folder, so a killed run goes on after it and ends with the same
bytes: cleaned documents, what deduplication keeps, the tokenizer, each split's shards.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.config.schema import DataConfig, TokenizerConfig
from ava_core.data.card import render_card
from ava_core.data.cleaned import Column, write_documents
from ava_core.data.cleaning import Cleaner, merge_reports
from ava_core.data.deduplication import deduplicate
from ava_core.data.durable import SECONDS, DurableFolders
from ava_core.data.shards import (
    SPLITS,
    SplitInfo,
    SplitsInfo,
    TokenizedDocument,
    token_dtype,
    write_split,
    write_splits_info,
)
from ava_core.data.sources import Source, open_sources, part_of, read_documents
from ava_core.data.sources.formats import Document
from ava_core.data.splitting import Piece, split_documents
from ava_core.data.tokenizer import BOUNDARY_ID, encode, read_tokenizer, save_tokenizer, train_tokenizer
from ava_core.errors import AvaError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ava_core.runtime.progress import Progress

log = logging.getLogger(__name__)
DOCUMENTS, REPORT = "documents.arrow", "report.json"


@dataclass(frozen=True)
class Preprocessed:
    """The figures of a finished run.

    Attributes:
        metrics: the same on every run.
        timings: what the clock gave; of a resumed run, the sum over all runs.
    """

    metrics: dict[str, float]
    timings: dict[str, float]


def preprocess(
    data_config: DataConfig,
    tokenizer_config: TokenizerConfig,
    *,
    data: Path | None,
    output: Path,
    state: Path,
    progress: Progress,
) -> Preprocessed:
    """Clean, deduplicate, split, train the tokenizer, write the shards.

    Args:
        data_config: the section `data`.
        tokenizer_config: the section `tokenizer`.
        data: the folder given with --data; may be None if no source needs it.
        output: an empty folder: gets `train/ validation/ test/ splits.json dataset_dict.json tokenizer/ cleaning.json
            README.md`.
        state: survives a killed run with the same inputs and configuration.
        progress: shows progress.

    Raises:
        AvaError: a source is missing, empty or can't be read, or too little text is left for three splits.
    """
    stages = _Stages(data_config, tokenizer_config, open_sources(data_config, data), DurableFolders(state), progress)
    splits = {name: stages.shards(name) for name in SPLITS}
    info = SplitsInfo(
        vocab_size=stages.vocab_size,
        boundary_token_id=BOUNDARY_ID,
        dtype=splits["train"].dtype,
        splits={name: split.info for name, split in splits.items()},
    )
    for name, split in splits.items():
        shutil.copytree(split.folder, output / name)
    shutil.copytree(stages.tokenizer_folder, output / "tokenizer", ignore=shutil.ignore_patterns(SECONDS))
    write_splits_info(output, info)
    report = stages.cleaning_report | {"deduplication": stages.deduplication_report}
    (output / "cleaning.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    (output / "README.md").write_text(render_card(data_config, tokenizer_config, stages.sources, info, report))
    return Preprocessed(_metrics(info, report), stages.timings(int(report["bytes_in"])))


def clean_part(
    config: DataConfig, *, data: Path | None, state: Path, index: int, count: int, progress: Progress
) -> dict[str, Any]:
    """Clean one part of the corpus into the state folder; `preprocess` takes the parts up when all are there.

    Args:
        config: the section `data`.
        data: the folder given with --data; may be None if no source needs it.
        state: the state folder of the `preprocess` that follows.
        index: which part, from 1.
        count: how many there are.
        progress: shows progress.

    Returns:
        What the cleaning filters counted.

    Raises:
        AvaError: a source is missing, empty or can't be read.
    """
    sources = part_of(open_sources(config, data), index, count)
    folder = DurableFolders(state).get(
        f"cleaned-{index}-of-{count}", lambda partial: _clean(config, sources, partial, progress)
    )
    return _read_json(folder / REPORT)


@dataclass(frozen=True)
class _Split:
    folder: Path
    dtype: str
    info: SplitInfo


@dataclass
class _Stages:
    """The stages, each computed when its result is first asked for, unless an earlier run left it.

    A stage asks for what it builds on before it begins: its seconds are its own.
    """

    config: DataConfig
    tokenizer_config: TokenizerConfig
    sources: list[Source]
    durable: DurableFolders
    progress: Progress

    @cached_property
    def _cleaned(self) -> Path:
        return self.durable.get("cleaned", self._clean)

    def _clean(self, folder: Path) -> None:
        parts = self._parts
        if parts:
            log.info("cleaned documents: taken up from %d parts", len(parts))
            report = _join(parts, folder)
        else:
            report = _clean(self.config, self.sources, folder, self.progress)
        if not report["documents_out"]:
            raise AvaError(_nothing_left(report))

    @cached_property
    def _parts(self) -> list[Path]:
        """The folders of `clean_part`, in order, if all parts of some number of them are there."""
        for first in self.durable.root.glob("cleaned-1-of-*"):
            count = int(first.name.rpartition("-")[-1]) if first.suffix != ".partial" else 0
            parts = [self.durable.root / f"cleaned-{index}-of-{count}" for index in range(1, count + 1)]
            if parts and all(part.is_dir() for part in parts):
                return parts
        return []

    @cached_property
    def cleaning_report(self) -> dict[str, Any]:
        return _read_json(self._cleaned / REPORT)

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
        """The folder with the tokenizer's files."""
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
    def vocab_size(self) -> int:
        """Entries of the tokenizer."""
        return self._tokenizer.get_vocab_size()

    def shards(self, name: str) -> _Split:
        """The shards of one split."""
        _ = self._tokenizer
        folder = self.durable.get(f"split-{name}", lambda partial: self._write_shards(name, partial))
        fields = _read_json(folder / "info.json")
        return _Split(folder / "shards", fields["dtype"], SplitInfo(**fields["info"]))

    def _write_shards(self, name: str, folder: Path) -> None:
        pieces = self._pieces[name]
        with self.progress.task(f"tokenise {name}", len(pieces)) as advance:

            def documents() -> Iterator[TokenizedDocument]:
                encoded = encode(self._tokenizer, (self._text(piece) for piece in pieces))
                for position, (piece, tokens) in enumerate(zip(pieces, encoded, strict=True)):
                    advance(position)
                    size = len(self._text(piece).encode())
                    yield TokenizedDocument(self._names[piece.document], tokens, size)

            info = write_split(
                folder / "shards",
                documents(),
                vocab_size=self.vocab_size,
                boundary_token_id=BOUNDARY_ID,
                shard_tokens=self.config.shard_tokens,
            )
            advance(len(pieces), tokens=f"{info.num_tokens:,}")
        content = {"dtype": token_dtype(self.vocab_size).name, "info": asdict(info)}
        (folder / "info.json").write_text(json.dumps(content))

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


def _clean(config: DataConfig, sources: list[Source], folder: Path, progress: Progress) -> dict[str, Any]:
    """Write the cleaned documents of `sources`, and what the filters counted."""
    cleaner = Cleaner(config.cleaning)
    total = max(1, sum(source.size for source in sources))
    with progress.task("read and clean", total) as advance:

        def cleaned() -> Iterator[Document]:
            for document in read_documents(sources):
                advance(min(cleaner.bytes_in, total - 1), documents=f"{cleaner.documents_in:,}")
                kept = cleaner.clean(document)
                if kept is not None:
                    yield kept

        write_documents(folder / DOCUMENTS, cleaned())
        advance(total, documents=f"{cleaner.documents_in:,}")
    report = cleaner.report()
    (folder / REPORT).write_text(json.dumps(report, ensure_ascii=False))
    return report


def _join(parts: list[Path], folder: Path) -> dict[str, Any]:
    """Write what `_clean` would have written for the parts' sources together."""

    def documents() -> Iterator[Document]:
        for part in parts:
            names, texts = (Column.open(part / DOCUMENTS, name) for name in ("name", "text"))
            yield from map(Document, names, texts)

    write_documents(folder / DOCUMENTS, documents())
    report = merge_reports([_read_json(part / REPORT) for part in parts])
    (folder / REPORT).write_text(json.dumps(report, ensure_ascii=False))
    return report


def _metrics(info: SplitsInfo, report: dict[str, Any]) -> dict[str, float]:
    removed = report["deduplication"]
    metrics: dict[str, float] = {
        "documents_in": report["documents_in"],
        "documents_kept": removed["documents_out"],
        "documents_dropped": report["documents_in"] - report["documents_out"],
        "duplicates_removed": removed["exact_duplicates"] + removed["near_duplicates"],
        "vocab_size": info.vocab_size,
    }
    for name, split in info.splits.items():
        metrics[f"{name}_tokens"] = split.num_tokens
        metrics[f"{name}_bytes"] = split.num_bytes
        metrics[f"{name}_documents"] = split.num_documents
    tokens = sum(split.num_tokens for split in info.splits.values())
    metrics["bytes_per_token"] = sum(split.num_bytes for split in info.splits.values()) / tokens
    return metrics


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
