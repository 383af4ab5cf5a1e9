"""Shards for benchmarks: of one text that is cut by position, and of the embedded corpus."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ava_core.config.tokenizer import TokenizerConfig
from ava_core.data.shards import SplitInfo, SplitsInfo, TokenizedDocument, write_split, write_splits_info
from ava_core.data.tokenizer import BOUNDARY_ID, encode, save_tokenizer, train_tokenizer
from ava_core.runtime import manifest

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
    folder.mkdir(parents=True)
    save_tokenizer(tokenizer, folder / "tokenizer")
    size = tokenizer.get_vocab_size()
    splits: dict[str, SplitInfo] = {}
    for name, part in parts.items():
        (tokens,) = encode(tokenizer, [part])
        document = TokenizedDocument(name, tokens, len(part.encode()))
        splits[name] = write_split(
            folder / name, [document], vocab_size=size, boundary_token_id=BOUNDARY_ID, shard_tokens=2**22
        )
    info = SplitsInfo(vocab_size=size, boundary_token_id=BOUNDARY_ID, dtype="uint16", splits=splits)
    write_splits_info(folder, info)
    _finish(folder, {"vocab_size": size})
    return folder


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
