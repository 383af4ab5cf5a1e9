"""Answers to messages, each the first of a chat of its own: what `generate` is to texts that go on.

answers(model, tokenizer, ["Who goes there?"], system="BERNARDO", strategy="greedy", settings=settings, seed=1)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ava_core.config.generation import GenerationConfig
from ava_core.generation.chat import EndOfTurn, encode_messages, end_of_turn
from ava_core.generation.constraints import Constraint
from ava_core.generation.decoding import continue_prompts

NO_TEMPLATE = (
    "this model has no chat template, so it wasn't trained for chats: it goes on with a dialogue of `user:` and"
    " `assistant:`"
)
"""What is said of a model that has learnt no turns."""


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    *,
    system: str = "",
    strategy: str,
    settings: GenerationConfig,
    seed: int,
    constraint: Constraint | None = None,
    num_return_sequences: int = 1,
    show: Callable[[str], None] | None = None,
    token_ids: Sequence[list[int]] | None = None,
) -> list[str]:
    """Answers to messages of a user, by the tokenizer's chat template, or `PLAIN_TEMPLATE` where it has none.

    Args:
        model, tokenizer, strategy, settings, seed, constraint, num_return_sequences: as for `generate`.
        questions: the messages.
        system: what stands before each of them; empty: nothing.
        show: told the answer to the only message piece by piece.
        token_ids: of each chat up to its answer, where they are not to be made from `system` and the message.

    Returns:
        The answers to each message, without the blank that a template leaves before one.

    Raises:
        ConfigError: as `generate`.
        AvaError: a message is too long for the model's context, is no text, or the template refuses it.
    """
    if token_ids is None:
        token_ids = [encode_messages(tokenizer, asked(text, system)) for text in questions]
    turn = turn_ends(model, tokenizer)
    if turn.text and constraint is None:  # a constraint knows by itself where its text ends
        settings = settings.model_copy(update={"stop": [*settings.stop, turn.text]})
    found = continue_prompts(
        model,
        tokenizer,
        questions,
        token_ids,
        strategy=strategy,
        settings=settings,
        seed=seed,
        constraint=constraint,
        num_return_sequences=num_return_sequences,
        show=show and _without_first_blank(show),
        ends=turn.tokens,
    )
    return [text.lstrip() for text in found]


def asked(question: str, system: str = "") -> list[dict[str, str]]:
    """The messages of a chat that a question begins."""
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": question}]


def turn_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> EndOfTurn:
    """What ends an answer: what the template writes after one, and all ends of the model's generation_config.json."""
    turn = end_of_turn(tokenizer, template)
    tokens = dict.fromkeys((*turn.tokens, *listed_ends(getattr(model, "generation_config", None))))
    return EndOfTurn(tuple(token for token in tokens if token != tokenizer.eos_token_id), turn.text)


def listed_ends(config: Any) -> tuple[int, ...]:
    """All ends that a model's generation_config.json lists; none without one."""
    ends = getattr(config, "eos_token_id", None)
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (int(ends),)


def _without_first_blank(show: Callable[[str], None]) -> Callable[[str], None]:
    begun = False

    def take(text: str) -> None:
        nonlocal begun
        text = text if begun else text.lstrip()
        if text:
            begun = True
            show(text)

    return take
