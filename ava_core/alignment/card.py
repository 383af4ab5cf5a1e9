"""The card of a data set of conversations: what it holds, how it looks to the model, what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ava_core.alignment.shards import SplitCounts
from ava_core.config.conversations import ConversationsConfig

LEARNT = {
    "sft": "A token is learnt where it is the assistant's, or ends its answer.",
    "preference": "Two rows are a pair: the same prompt, with the preferred answer and with another one. Of both only"
    " the last answer is learnt.",
    "prompts": "A row is a prompt: what a model is asked, up to where its answer begins; nothing of it is learnt."
    " `train.jsonl`, `validation.jsonl` and `test.jsonl` have a line for each row, in the same order: its messages, the"
    " answer of the data to compare with, if there is one, and what else answers are checked by.",
}
"""What a row is, by purpose."""
SHOWN = 10
"""Rows that were left out and are shown with their reasons."""


def render_card(
    config: ConversationsConfig,
    purpose: str,
    counts: Mapping[str, SplitCounts],
    samples: Mapping[str, str],
    left_out: Sequence[tuple[str, str]],
    duplicates: int,
    note: str = "",
) -> str:
    """README.md of the shards.

    Args:
        config: what they were made by.
        purpose: what they were made for: sft, preference or prompts.
        counts: of each split.
        samples: the first conversation of each split as the model reads it.
        left_out: name and reason of what gave none.
        duplicates: conversations that were there more than once.
        note: what else is to be said of how they were chosen.
    """
    sources = ", ".join(f"{source.kind}: {source.location}" for source in config.sources)
    lines = [
        "# Prompts" if purpose == "prompts" else "# Conversations",
        "",
        f"Made by `ava preprocess --for {purpose}` from {sources}. {LEARNT[purpose]}",
        "",
        *(_prompts_table(counts) if purpose == "prompts" else _table(counts)),
        "",
        " ".join(filter(None, (f"{duplicates:,} repeated and {len(left_out):,} left out (`left_out.jsonl`).", note))),
        "",
    ]
    if left_out:
        lines += [f"- {name}: {reason}" for name, reason in left_out[:SHOWN]]
        lines += [""]
    lines += ["## How the model reads one", ""]
    for name, text in samples.items():
        lines += [f"### {name}", "", *(f"    {line}" for line in text.splitlines()), ""]
    return "\n".join(lines)


def _table(counts: Mapping[str, SplitCounts]) -> list[str]:
    lines = ["| split | conversations | answers | tokens | learnt |", "|---|---:|---:|---:|---:|"]
    for name, split in counts.items():
        share = f"{split.learnt:,} ({split.learnt / split.tokens:.0%})"
        lines.append(f"| {name} | {split.conversations:,} | {split.answers:,} | {split.tokens:,} | {share} |")
    return lines


def _prompts_table(counts: Mapping[str, SplitCounts]) -> list[str]:
    rows = [f"| {name} | {split.conversations:,} | {split.tokens:,} |" for name, split in counts.items()]
    return ["| split | prompts | tokens |", "|---|---:|---:|", *rows]
