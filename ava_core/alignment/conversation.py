"""A conversation, and what makes one that can be learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Message:
    """Attributes:
    role: who speaks.
    content: what is said.
    """

    role: str
    content: str

    def as_dict(self) -> dict[str, str]:
        """As templates and Transformers want it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Attributes:
    name: where it came from: the same on every machine.
    messages: the system's if there is one, then user and assistant in turn; the assistant has the last word, or the
        user where nothing but a prompt is wanted.
    document: name of the document of the pretraining's corpus that it was taken from; None: it is of no such.
    rejected: another last answer, which is worse; None: there is none yet, or none is needed.
    facts: what a checker of answers needs beside them, as JSON has it: of a source `gym` under that key its task,
        settings, seed, count, index and entry; None: there is nothing to check by.
    """

    name: str
    messages: tuple[Message, ...]
    document: str | None = None
    rejected: str | None = None
    facts: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """What the last answer is an answer to, or would be one to."""
        return self.messages[:-1] if self.is_answered else self.messages

    @property
    def is_answered(self) -> bool:
        """Whether the assistant has the last word."""
        return self.messages[-1].role == "assistant"

    @property
    def answer(self) -> str:
        """The last answer, if there is one: see `is_answered`."""
        return self.messages[-1].content

    def answered(self, text: str) -> Conversation:
        """The same with another last answer."""
        return replace(self, messages=(*self.prompt, Message("assistant", text)), rejected=None)

    def against(self, rejected: str) -> Conversation:
        """The same beside an answer that is worse.

        Raises:
            RowFault: it is empty, or no other answer.
        """
        if not rejected.strip():
            raise RowFault("rejected: the answer is empty")
        if rejected.strip() == self.answer.strip():
            raise RowFault("rejected: is the same as the preferred answer")
        return replace(self, rejected=rejected)


class RowFault(ValueError):
    """A row holds no conversation; the text says the field and what is wrong with it."""


def checked(
    name: str,
    messages: Sequence[Message],
    document: str | None = None,
    facts: Mapping[str, Any] | None = None,
    *,
    answered: bool = True,
) -> Conversation:
    """The conversation of these messages.

    Args:
        name, messages, document, facts: as `Conversation` has them.
        answered: whether the assistant must have the last word; else the user may.

    Raises:
        RowFault: nobody answers, a message is empty, or the turns don't alternate.
    """
    for number, message in enumerate(messages):
        if message.role not in ROLES:
            raise RowFault(f"message {number + 1}: role = {message.role!r}: must be one of {', '.join(ROLES)}")
        if not message.content.strip():
            raise RowFault(f"message {number + 1}: content: the {message.role}'s message is empty")
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        raise RowFault("messages: there is no turn of user and assistant")
    first = len(messages) - len(turns) + 1
    for number, message in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if message.role != expected:
            raise RowFault(f"message {first + number}: role = {message.role}: must be {expected}: turns alternate")
    if answered and turns[-1].role != "assistant":
        raise RowFault(f"message {len(messages)}: role = user: the last message must be the assistant's")
    return Conversation(name, tuple(messages), document, facts=facts)
