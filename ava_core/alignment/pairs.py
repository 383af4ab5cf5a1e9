"""Pairs of answers to the same prompt: the worse one of conversations that have only the better one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ava_core.alignment.conversation import Conversation, RowFault
from ava_core.alignment.tokens import EncodedConversation, encode_conversation, encode_prompt, end_of_answer
from ava_core.config.preferences import PreferencesConfig
from ava_core.data.tokenizer import load_tokenizer, special_ids
from ava_core.errors import ConfigError

if TYPE_CHECKING:
    from ava_core.progress import Progress

LIKE = 16
"""Answers of about the same length among which that to another prompt is drawn: length is to tell nothing."""


@dataclass(frozen=True)
class Opponent:
    """Where the worse answers come from, for conversations that have none.

    Attributes:
        config: the section `preferences`.
        model: output folder of a step that gives models; None where nothing is sampled.
        seed: of what is drawn.
        progress: shows progress.
    """

    config: PreferencesConfig
    model: Path | None
    seed: int
    progress: Progress

    def check(self, conversations: Sequence[Conversation]) -> None:
        """Refuse, before anything is sampled, what lacks a model.

        Raises:
            ConfigError: it does.
        """
        if self.model is None and self._is_sampled and any(item.rejected is None for item in conversations):
            raise ConfigError(
                "--model is missing: the rejected answers are its own (preferences.rejected: sample): give it, or set"
                " preferences.rejected=other"
            )

    def rejected(self, split: str, conversations: Sequence[Conversation], tokenizer: Path) -> list[str]:
        """The worse answer of each; what a model gave may be empty, or the same as the better one, and is empty where
        the prompt alone is too long for a pair."""
        found = [item.rejected or "" for item in conversations]
        asked = [number for number, item in enumerate(conversations) if item.rejected is None]
        if asked:
            alone = [conversations[number] for number in asked]
            texts = self._sampled(split, alone, tokenizer) if self._is_sampled else self._of_others(alone)
            for number, text in zip(asked, texts, strict=True):
                found[number] = text
        return found

    @property
    def _is_sampled(self) -> bool:
        return self.config.rejected == "sample"

    def _sampled(self, split: str, conversations: Sequence[Conversation], tokenizer: Path) -> list[str]:
        from ava_core.alignment.sampling import sample_answers
        from ava_core.models import EnhancedMoEForCausalLM
        from ava_core.models.pretrained import load_pretrained
        from ava_core.models.vocabulary import grow_vocabulary

        loaded: Any = load_tokenizer(tokenizer)
        model, _ = load_pretrained(EnhancedMoEForCausalLM, self.model or Path())
        special = special_ids(tokenizer)
        grow_vocabulary(model, special.vocab_size, boundary_token_id=special.boundary, pad_token_id=special.padding)
        texts = [""] * len(conversations)
        limit = self.config.max_tokens // 2
        prompts = {
            number: tokens
            for number, item in enumerate(conversations)
            if len(tokens := encode_prompt(loaded, item.prompt)) < limit
        }
        if not prompts:
            return texts
        with self.progress.task(f"sample {split}", len(prompts)) as advance:
            answers = sample_answers(
                model.eval(),
                list(prompts.values()),
                end_of_answer(loaded),
                limit,
                self.seed,
                temperature=self.config.temperature,
                advance=advance,
            )
        for number, answer in zip(prompts, answers, strict=True):
            texts[number] = loaded.decode(answer, skip_special_tokens=True).strip()
        return texts

    def _of_others(self, conversations: Sequence[Conversation]) -> list[str]:
        order = sorted(range(len(conversations)), key=lambda number: (len(conversations[number].answer), number))
        place = {number: position for position, number in enumerate(order)}
        drawn = np.random.default_rng(self.seed).integers(0, 2**31, len(conversations))
        texts = []
        for number, item in enumerate(conversations):
            first = max(0, min(place[number] - LIKE // 2, len(order) - LIKE - 1))
            near = [conversations[other].answer for other in order[first : first + LIKE + 1]]
            others = [text for text in near if text.strip() != item.answer.strip()]
            texts.append(others[drawn[number] % len(others)] if others else "")
        return texts


def encode_pair(
    tokenizer: Any, conversation: Conversation, rejected: str, max_tokens: int
) -> tuple[EncodedConversation, ...]:
    """The pair's better and worse side; of both only the last answer is learnt.

    Raises:
        RowFault: the sides are too long, the worse answer is empty or the same, or the template refuses a side.
    """
    better = _last_answer(tokenizer, conversation)
    if (least := 2 * len(better) - int(better.learnt.sum())) > max_tokens:
        raise RowFault(f"has more than {least} tokens, more than preferences.max_tokens = {max_tokens}")
    conversation.against(rejected)
    return better, _last_answer(tokenizer, conversation.answered(rejected))


def _last_answer(tokenizer: Any, conversation: Conversation) -> EncodedConversation:
    item = encode_conversation(tokenizer, conversation)
    prompt = len(encode_prompt(tokenizer, conversation.prompt))
    learnt = item.learnt.copy()
    learnt[:prompt] = False
    if not learnt.any():
        raise RowFault("the chat template leaves nothing of the answer to be learnt")
    return EncodedConversation(item.name, item.tokens, learnt, len(conversation.answer.encode()))
