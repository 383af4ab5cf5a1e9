"""Shards for benchmarks: of one text that is cut by position, and of the embedded corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ava_core.config.tokenizer import TokenizerConfig
from ava_core.data.shard_writing import TokenizedDocument, write_split, write_splits_info
from ava_core.data.shards import SplitInfo, SplitsInfo
from ava_core.data.tokenizer import encode, read_tokenizer, save_tokenizer, special_ids, train_tokenizer
from ava_core.runtime import manifest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TINY_SHAKESPEARE = Path(__file__).parents[2] / "shared" / "corpora" / "tinyshakespeare.txt"
"""Beside the checkout, not in it; the benchmarks that need it say so where it is absent."""
TRAINING_SHARE = 0.9
"""Of the text's characters, as nanoGPT cuts it."""


def shards_by_position(text: str, vocab_size: int, folder: Path) -> Path:
    """Shards as `ava preprocess` leaves them: the first 90% for training, the rest for validation, all of it scored.

    The contract wants a test split too; it is the validation split again, and nothing reads it. Not `ava preprocess`
    itself, which cleans the text and always leaves a third part.
    """
    if (folder / manifest.NAME).exists():
        return folder
    cut = int(TRAINING_SHARE * len(text))
    parts = {"train": text[:cut], "validation": text[cut:], "test": text[cut:]}
    tokenizer = train_tokenizer([parts["train"]], TokenizerConfig(vocab_size=vocab_size))
    _write(folder, tokenizer, {name: {name: part} for name, part in parts.items()})
    return folder


def shards_of_files(files: Sequence[Path], vocab_size: int, folder: Path, tokenizer: Path | None = None) -> Path:
    """Shards of one document per file: every eighth, from the fourth on, is held out, the rest is to train on.

    Args:
        files: UTF-8 texts, in order.
        vocab_size: entries of the tokenizer that is trained on what is trained on.
        folder: to write to.
        tokenizer: a folder with one to use instead; then `vocab_size` means nothing.
    """
    texts = {path.name: path.read_text(encoding="utf-8") for path in files}
    held_out = list(texts)[3::8]
    training = {name: text for name, text in texts.items() if name not in held_out}
    if tokenizer:
        used = read_tokenizer(tokenizer)
    else:
        used = train_tokenizer(training.values(), TokenizerConfig(vocab_size=vocab_size))
    rest = {name: texts[name] for name in held_out}
    _write(folder, used, {"train": training, "validation": rest, "test": rest})
    return folder


def _write(folder: Path, tokenizer: Tokenizer, parts: Mapping[str, Mapping[str, str]]) -> None:
    """Write the texts of each split by name, and all else that `ava train` wants of shards."""
    folder.mkdir(parents=True)
    save_tokenizer(tokenizer, folder / "tokenizer")
    ids = special_ids(folder / "tokenizer")
    splits: dict[str, SplitInfo] = {}
    for split, texts in parts.items():
        tokens = encode(tokenizer, texts.values())
        documents = [
            TokenizedDocument(name, found, len(text.encode()))
            for (name, text), found in zip(texts.items(), tokens, strict=True)
        ]
        splits[split] = write_split(
            folder / split, documents, vocab_size=ids.vocab_size, boundary_token_id=ids.boundary, shard_tokens=2**22
        )
    info = SplitsInfo(vocab_size=ids.vocab_size, boundary_token_id=ids.boundary, dtype="uint16", splits=splits)
    write_splits_info(folder, info)
    _finish(folder, {"vocab_size": ids.vocab_size})


def _finish(folder: Path, choices: Mapping[str, int]) -> None:
    """A manifest, without which `ava train` takes nothing."""
    contents = manifest.Manifest(
        step="preprocess",
        key="benchmark",
        version="benchmark",
        code="benchmark",
        config="benchmark",
        choices={name: str(value) for name, value in choices.items()},
        inputs={},
        threads=1,
        ranks=1,
        files=manifest.describe_files(folder),
    )
    manifest.write(folder, contents)
