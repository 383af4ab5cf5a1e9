"""What a reward is computed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ava_core.alignment.conversation import Message


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of a model, and what it is judged by.

    Attributes:
        prompt: the messages before it; the last one is the user's.
        text: what the model says, without the tokens of its template.
        reference: the answer that the data has; None: it has none.
        facts: what else a checker needs, as JSON has it; see `Conversation.facts`.
        ended: whether the model ended it, rather than a bound on its length.
    """

    prompt: tuple[Message, ...]
    text: str
    reference: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)
    ended: bool = True


Reward = Callable[[Sequence[Answer]], Sequence[float]]
"""A number for each answer, in their order; the same for the same answers."""
