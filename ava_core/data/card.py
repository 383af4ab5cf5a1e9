"""The data set card: README.md of the shards, in the form that the Hugging Face Hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ava_core.config.data import DataConfig
from ava_core.config.tokenizer import TokenizerConfig
from ava_core.data.shard_writing import BLOCK_TOKENS
from ava_core.data.shards import SplitsInfo
from ava_core.data.sources.source import Source
from ava_core.data.tokenizer import FILE
from ava_core.data.tokenizer_identity import digest_of

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
"""The Hub's size categories, in rows."""


def describe_tokenizer(config: TokenizerConfig, info: SplitsInfo, taken: Path | None) -> str:
    """Where the tokens come from, in a sentence.

    Args:
        config: the section `tokenizer`.
        info: counts of the splits.
        taken: folder of the tokenizer, if it was a finished one.
    """
    if taken is None:
        return (
            f"Byte-level BPE with {info.vocab_size:,} entries ({config.vocab_size:,} asked for), trained on the"
            f" training split only; pairs seen less than {config.min_frequency} times are not merged."
        )
    return (
        f"A finished tokenizer with {info.vocab_size:,} entries, nothing of which was learned from this text; every"
        f" document's tokens give back its text. SHA-256 of its {FILE}: `{digest_of(taken)}`."
    )


def render_card(data: DataConfig, tokens: str, sources: list[Source], info: SplitsInfo, report: dict[str, Any]) -> str:
    """The card as Markdown; the same text for the same data, wherever it lay.

    Args:
        data: the section `data`.
        tokens: what `describe_tokenizer` says.
        sources: what was read.
        info: counts of the splits.
        report: contents of cleaning.json.
    """
    documents = sum(split.num_documents for split in info.splits.values())
    size = next((label for limit, label in SIZES if documents < limit), "n>10M")
    languages = sorted({source.language for source in sources if source.language})
    removed, near = report["deduplication"], data.deduplication
    lines = ["---"]
    if languages:
        lines += ["language:", *(f"- {language}" for language in languages)]
    lines += ["task_categories:", "- text-generation", "size_categories:", f"- {size}", "---", ""]
    lines += ["# Token shards", "", "Written by `ava preprocess`.", "", "## Sources", ""]
    lines += _table(
        ("source", "license"),
        [(source.name, source.license or "not stated: check it before you share") for source in sources],
    )
    lines += ["## Cleaning", "", "In this order; `cleaning.json` has the reasons and samples.", ""]
    lines += _table(
        ("filter", "documents in", "documents out", "changed", "bytes in", "bytes out"),
        [
            (
                f"`{count['name']}`",
                *(
                    f"{count[field]:,}"
                    for field in ("documents_in", "documents_out", "documents_changed", "bytes_in", "bytes_out")
                ),
            )
            for count in report["filters"]
        ],
    )
    lines += [
        f"Duplicates removed: {removed['exact_duplicates']:,} exact, {removed['near_duplicates']:,} near (Jaccard"
        f" similarity of {near.shingle_words}-word shingles from {near.threshold:g}, estimated with"
        f" {near.num_permutations} hash functions).",
        "",
        "## Splits",
        "",
        _split_rule(data),
        "",
    ]
    lines += _table(
        ("split", "documents", "bytes of text", "tokens", "shards"),
        [
            (name, *(f"{count:,}" for count in (part.num_documents, part.num_bytes, part.num_tokens, part.num_shards)))
            for name, part in info.splits.items()
        ],
    )
    lines += [
        "## Tokens",
        "",
        f"{tokens} Every document ends with"
        f" token {info.boundary_token_id}. A row holds `document_id`, `name` and `tokens` ({info.dtype}), at most"
        f" {BLOCK_TOKENS:,} tokens of one document; `datasets.load_from_disk` reads the folder, or one split.",
        "",
    ]
    return "\n".join(lines)


def _split_rule(data: DataConfig) -> str:
    shares = (data.split.train, data.split.validation, 1 - data.split.train - data.split.validation)
    parts = " / ".join(f"{share:.0%}" for share in shares)
    if data.split.by == "position":
        return f"The text in its order, cut at {parts} of its bytes."
    return (
        f"Whole documents, ranked by the SHA-256 of the salt `{data.split.salt}` and their content, cut as near to"
        f" {parts} of the bytes as whole documents allow. No document is in two splits."
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows]
    return [*("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines), ""]
