"""Token shards: Arrow files in the layout of `datasets.save_to_disk`, one folder per split.

A row is a block of one document: `document_id` (position of the document in its split), `name`, `tokens`. Every
document ends with one boundary token, so a split's stream is `d0 <|endoftext|> d1 <|endoftext|> ...`
(with the boundary token of its tokenizer).
`splits.json` beside the folders holds the counts, and `dataset_dict.json` makes them one `DatasetDict`.
`datasets.load_from_disk(FOLDER)` reads them too; the reader here maps the files itself, because importing `datasets`
takes longer than reading a corpus.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ava_core.errors import AvaError, IntegrityError, first_line
from ava_core.files import parse_json

SPLITS = ("train", "validation", "test")
INFO_NAME = "splits.json"


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """Counts of one split.

    Attributes:
        num_bytes: UTF-8 bytes of the cleaned text that was tokenised; bits per byte divides by it.
        num_tokens: tokens of the stream, boundary tokens included.
        num_documents: documents in it.
        num_shards: Arrow files.
    """

    num_bytes: int
    num_tokens: int
    num_documents: int
    num_shards: int


@dataclass(frozen=True, kw_only=True)
class SplitsInfo:
    """What `splits.json` says.

    Attributes:
        vocab_size: entries of the tokenizer; every token is smaller.
        boundary_token_id: the token that ends every document.
        dtype: NumPy type of the stored tokens.
        splits: counts by name of the split.
        padding: the token that fills up batches; None: the one after the boundary token, as in a tokenizer that was
            learned here. Then the file doesn't name it.
    """

    vocab_size: int
    boundary_token_id: int
    dtype: str
    splits: dict[str, SplitInfo]
    padding: int | None = None

    @property
    def pad_token_id(self) -> int:
        """The token that fills up batches."""
        return self.boundary_token_id + 1 if self.padding is None else self.padding


def load_splits_info(folder: Path) -> SplitsInfo:
    """Read `folder`/splits.json.

    Raises:
        AvaError: `folder` is not the output of `ava preprocess`.
        IntegrityError: the file can't be understood.
    """
    path = folder / INFO_NAME
    if not path.is_file():
        raise AvaError(f"{path}: no such file: give the output folder of `ava preprocess`")
    try:
        fields = parse_json(path.read_bytes())
        splits = {name: SplitInfo(**counts) for name, counts in fields.pop("splits").items()}
        return SplitsInfo(**fields, splits=splits)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IntegrityError(f"{path}: can't be read ({error}): run `ava preprocess` again") from error


def document_names(folder: Path, name: str) -> list[str]:
    """Where each document of split `name` came from, in their order; raises as `ShardedSplit.open`."""
    import pyarrow as pa

    names: dict[int, str] = {}
    for path in _read_state(folder / name)[0]:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            table = reader.read_all()
        names.update(zip(table["document_id"].to_pylist(), table["name"].to_pylist(), strict=True))
    return list(names.values())


@dataclass(frozen=True)
class ShardedSplit:
    """One split, ready to be read.

    Attributes:
        name: train, validation or test.
        tokens: the stream, shape (num_tokens,), read-only; mapped from the file when there is one shard,
            else joined in memory. Type uint16 or int32.
        document_starts: index of each document's first token in the stream, int64, shape (num_documents,).
        num_bytes: UTF-8 bytes of the text.
        vocab_size: entries of the tokenizer.
        boundary_token_id: the token that ends every document.
        fingerprint: tells its content from that of others.
        padding: as in `SplitsInfo`.
    """

    name: str
    tokens: np.ndarray
    document_starts: np.ndarray
    num_bytes: int
    vocab_size: int
    boundary_token_id: int
    fingerprint: str
    padding: int | None = None

    @property
    def pad_token_id(self) -> int:
        """The token that fills up batches."""
        return self.boundary_token_id + 1 if self.padding is None else self.padding

    @property
    def num_tokens(self) -> int:
        """Tokens of the stream, boundary tokens included."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Documents in the split."""
        return len(self.document_starts)

    @classmethod
    def open(cls, folder: Path | str, name: str) -> ShardedSplit:
        """Open split `name` below `folder`, the output of `ava preprocess`.

        Raises:
            AvaError: there is no such folder or split.
            IntegrityError: a shard can't be read, or doesn't hold what `splits.json` says.
        """
        folder = Path(folder)
        info = load_splits_info(folder)
        if name not in info.splits:
            raise AvaError(f"{folder}: has no split `{name}`: its splits are {', '.join(sorted(info.splits))}")
        counts = info.splits[name]
        paths, fingerprint = _read_state(folder / name)
        streams, ids = zip(*[_read_shard(path) for path in paths], strict=True)
        tokens = streams[0] if len(streams) == 1 else np.concatenate(streams)
        row_ids, row_tokens = np.concatenate([part[0] for part in ids]), np.concatenate([part[1] for part in ids])
        first = np.flatnonzero(np.diff(row_ids, prepend=-1))
        starts = np.concatenate([[0], np.cumsum(row_tokens)])[first]
        found = (len(tokens), len(starts), len(streams))
        if found != (counts.num_tokens, counts.num_documents, counts.num_shards):
            raise IntegrityError(
                f"{folder / name}: holds {found[0]} tokens, {found[1]} documents, {found[2]} shards, {INFO_NAME} says"
                f" {counts.num_tokens}, {counts.num_documents}, {counts.num_shards}: run `ava preprocess` again"
            )
        tokens.flags.writeable = False
        bounds = starts.astype(np.int64)
        return cls(
            name=name,
            tokens=tokens,
            document_starts=bounds,
            num_bytes=counts.num_bytes,
            vocab_size=info.vocab_size,
            boundary_token_id=info.boundary_token_id,
            fingerprint=fingerprint,
            padding=info.padding,
        )


def shard_files(folder: Path) -> list[Path]:
    """The Arrow files of a split in their order.

    Raises:
        IntegrityError: the split doesn't say them.
    """
    return _read_state(folder)[0]


def _read_state(folder: Path) -> tuple[list[Path], str]:
    """The Arrow files of a split in their order, as `state.json` lists them, and its fingerprint."""
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text())
        files, fingerprint = [folder / item["filename"] for item in state["_data_files"]], str(state["_fingerprint"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise IntegrityError(f"{path}: can't be read ({error}): run `ava preprocess` again") from error
    if not files:
        raise IntegrityError(f"{path}: lists no shards: run `ava preprocess` again")
    return files, fingerprint


def _read_shard(path: Path) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The tokens of one Arrow file, mapped where possible, and per row its document and number of tokens."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            table = reader.read_all()
        if not len(table):
            raise IntegrityError(f"{path}: holds no document: run `ava preprocess` again, with more text")
        columns = [table["tokens"].chunk(index) for index in range(table["tokens"].num_chunks)]
        parts = [column.flatten().to_numpy(zero_copy_only=True) for column in columns]
        lengths = np.concatenate([np.diff(column.offsets.to_numpy()) for column in columns])
        ids = table["document_id"].to_numpy()
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        reason = first_line(error)
        raise IntegrityError(f"{path}: can't be read as a shard ({reason}): run `ava preprocess` again") from error
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)), (ids, lengths)
