"""A conversation with a model: its messages, what of them the model still sees, and its next answer.

talk = Conversation(model, tokenizer)
talk.system = "Answer in verse."
for answer in talk.say("Who goes there?", show=print): ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ava_core.config.generation import GenerationConfig
from ava_core.errors import AvaError, ConfigError
from ava_core.generation.answers import turn_ends
from ava_core.generation.chat import encode_messages
from ava_core.generation.decoding import continue_tokens
from ava_core.generation.kept_cache import KeptCache

LEAST_ROOM = 4
"""An answer gets at least this part of the context, a fourth, if it may be as long: older messages make room for it."""


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: the answer.
        cut: it ended at `max_new_tokens` or with the context.
        dropped: number of old messages that the model doesn't see any more since this turn.
    """

    text: str
    cut: bool
    dropped: int


@dataclass
class Conversation:
    """Messages of a user and a model, in turns. Of each turn the model reads what is new since the last.

    Attributes:
        model, tokenizer: as `load_model` gives them.
        template: Jinja text; None: the tokenizer's own, or `PLAIN_TEMPLATE`.
        strategy, settings: of decoding; any strategy but beam.
        seed: of the next answer; each answer raises it by one.
        system: what stands before all messages; empty: nothing.
        messages: role and content, of the user and the assistant in turn.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: str | None = None
    strategy: str = "nucleus"
    settings: GenerationConfig = field(default_factory=GenerationConfig)
    seed: int = 1337
    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    _unseen: int = 0
    """Messages that no longer fit into the context."""

    def __post_init__(self) -> None:
        self._kept = KeptCache(self.model)

    def say(self, text: str, show: Callable[[str], None]) -> Answer:
        """Send a message; the answer is shown piece by piece, and both join the messages.

        If `show` or a signal raises while the answer is made, what was shown of it is kept as the answer.

        Raises:
            AvaError: the message alone is too long for the context, is no text, or the template refuses it. The
                conversation is as before.
        """
        ids, dropped = self._fit([*self.messages, {"role": "user", "content": text}])
        self.messages.append({"role": "user", "content": text})
        return self._answer(ids, dropped, show)

    def regenerate(self, show: Callable[[str], None]) -> Answer:
        """Replace the last answer by another.

        Raises:
            ConfigError: there is none.
        """
        return self.say(self.undo(), show)

    def undo(self) -> str:
        """Take the last message of the user back, and what followed; returns it.

        Raises:
            ConfigError: there is none.
        """
        if not self.messages:
            raise ConfigError("there is nothing to take back: say something first")
        question, _ = self.messages[-2:]
        del self.messages[-2:]
        self._unseen = min(self._unseen, len(self.messages))
        return question["content"]

    def reset(self) -> None:
        """Forget all messages; the system prompt stays."""
        self.messages, self._unseen = [], 0

    @property
    def trained(self) -> bool:
        """Whether there is a chat template: a model without one has learnt no turns."""
        return bool(self.template or getattr(self.tokenizer, "chat_template", None))

    def _answer(self, ids: list[int], dropped: int, show: Callable[[str], None]) -> Answer:
        shown: list[str] = []
        turn = turn_ends(self.model, self.tokenizer, self.template)
        room = self.model.config.max_position_embeddings - len(ids)
        limit = min(self.settings.max_new_tokens, room)
        stop = [*self.settings.stop, *([turn.text] if turn.text else [])]
        settings = GenerationConfig(
            **{
                **self.settings.model_dump(),
                "max_new_tokens": limit,
                "min_new_tokens": min(self.settings.min_new_tokens, limit),
                "stop": stop,
            }
        )

        def keep(text: str) -> None:
            text = text if shown else text.lstrip()  # the blank that a template leaves after its colon
            if text:
                shown.append(text)
                show(text)

        seed, self.seed = self.seed, self.seed + 1
        try:
            cut = continue_tokens(
                self.model,
                self.tokenizer,
                ids,
                strategy=self.strategy,
                settings=settings,
                seed=seed,
                ends=turn.tokens,
                show=keep,
                kept=self._kept,
            )
        finally:
            self.messages.append({"role": "assistant", "content": "".join(shown).rstrip()})
        return Answer(self.messages[-1]["content"], cut, dropped)

    def _fit(self, messages: list[dict[str, str]]) -> tuple[list[int], int]:
        """The tokens of as many of the newest messages as fit, and how many more than before don't."""
        context = self.model.config.max_position_embeddings
        most = context - min(self.settings.max_new_tokens, context // LEAST_ROOM)
        for first in range(self._unseen, len(messages), 2):
            ids = self._encode(messages[first:])
            if len(ids) <= most:
                dropped, self._unseen = first - self._unseen, first
                return ids, dropped
        raise AvaError(
            f"message of {len(ids)} tokens: the model's context of {context} has room for {most}: shorten it"
        )

    def _encode(self, messages: list[dict[str, str]]) -> list[int]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return encode_messages(self.tokenizer, [*system, *messages], self.template)
