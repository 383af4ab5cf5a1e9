"""What commands look up in an index before a model writes: their flags, and the sources that they show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ava_core.retrieval.augmenting import LookUp
    from ava_core.retrieval.placing import Placed

MODES = ("hybrid", "lexical", "dense")
TopK = Annotated[int, typer.Option(min=1, max=1000, help="Passages to look up, at most.")]
Mode = Annotated[
    str | None,
    typer.Option(help=f"{', '.join(MODES)}: both ways, by words, by meaning; without it the first that there is."),
]
Labels = Annotated[
    list[str] | None, typer.Option("--label", help="Access label to look up with; may be given several times.")
]
EmbeddingModel = Annotated[
    Path | None,
    typer.Option(help="Model that the index was built with, for an index of retrieval.embedding = model."),
]


def require_mode(mode: str | None, flag: str) -> Any:
    """The mode, if there is such a one.

    Raises:
        ConfigError: there is none.
    """
    from ava_core.errors import ConfigError

    if mode is not None and mode not in MODES:
        raise ConfigError(f"{flag} {mode}: must be one of {', '.join(MODES)}")
    return mode


def open_look_up(
    index: Path,
    *,
    top_k: int,
    mode: str | None,
    labels: Sequence[str],
    model: Path | None,
    threads: int,
) -> LookUp:
    """What is looked up for each prompt; raises as `Retriever.open`."""
    from ava_core.retrieval.augmenting import LookUp
    from ava_core.retrieval.retriever import Retriever

    searched = require_mode(mode, "--search-mode")
    return LookUp(Retriever.open(index, mode=searched, model=model, threads=threads), top_k, searched, tuple(labels))


def prompts_with_passages(
    look_up: LookUp, tokenizer: Any, prompts: Sequence[str], *, chat: bool, system: str, most: int
) -> tuple[list[list[int]], list[Placed]]:
    """The tokens of each prompt with its passages, at most so many, and what was placed.

    Args:
        look_up: finds the passages.
        tokenizer: of the model.
        prompts: texts, or a user's messages.
        chat: they are messages.
        system: what the system says before each, for a chat.
        most: tokens that leave room for the new ones.
    """
    from ava_core.generation.answers import asked
    from ava_core.retrieval.augmenting import before_messages, before_text, with_passages

    made = []
    for prompt in prompts:
        alone = before_messages(tokenizer, asked(prompt, system)) if chat else before_text(tokenizer, prompt)
        made.append(with_passages(tokenizer, look_up.find(prompt), alone, most))
    return [tokens for tokens, _ in made], [placed for _, placed in made]


def sources_of(placed: Placed) -> list[str]:
    """A line for each passage that the model read: `[1] document start-end | headings`."""
    from ava_core.errors import one_line

    lines = []
    for number, found in enumerate(placed.found, 1):
        passage = found.passage
        heading = f" | {passage.heading}" if passage.heading else ""
        lines.append(one_line(f"[{number}] {passage.document} {passage.start}-{passage.end}{heading}"))
    return lines
