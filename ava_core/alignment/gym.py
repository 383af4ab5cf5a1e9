"""Items of reasoning-gym as conversations: the question is the user's message, the answer the assistant's."""

from __future__ import annotations

from collections.abc import Iterator

from ava_core.alignment.conversation import Conversation, Message, RowFault, checked
from ava_core.data.sources.gym import GymSource
from ava_core.errors import AvaError


def conversations_of(
    source: GymSource, faults: list[tuple[str, str]], *, answered: bool = True
) -> Iterator[Conversation]:
    """A conversation for each item, with what its checker needs as `facts`.

    Args:
        source: the items.
        faults: gets the name of each item that gives none, and why.
        answered: whether each must have an answer; else those of tasks that only check are the question alone.

    Raises:
        AvaError: the task has no answers, and they must be there; or it can't make an item.
    """
    for row in source.rows():
        question, answer = row.values["question"], row.values["answer"]
        if not isinstance(answer, str) and answered:
            raise AvaError(
                f"{row.name}: the task gives no answer, only a checker of answers: take another one for conversations"
            )
        messages = [Message("user", question)]
        if isinstance(answer, str):
            messages.append(Message("assistant", answer))
        try:
            yield checked(row.name, messages, facts={"gym": row.values["gym"]}, answered=answered)
        except RowFault as fault:
            faults.append((row.name, str(fault)))
