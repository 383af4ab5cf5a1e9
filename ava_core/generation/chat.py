"""Chats as tokens: special tokens come from the template, never from what a message says.

A template can do what it likes with a message, cut it, trim it and put special tokens around it in one expression, so
where contents begin and end isn't known in its result. But every special token has one of a few characters (`|` for
`<|endoftext|>`). Before the template runs, these characters are replaced in the messages by placeholders, one for one.
What then spells a special token was written by the template; in the rest the placeholders are replaced back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ava_core.errors import AvaError, first_line
from ava_core.generation.prompts import encode_text

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""For tokenizers without a template of their own: base models, which know no turns but may continue a dialogue."""
PRIVATE_USE = range(0xF0000, 0xFFFFE)
"""Code points without a meaning in any text: the placeholders."""


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    template: str | None = None,
    *,
    answer: bool = True,
) -> list[str | int]:
    """A chat as the template writes it: texts, and ids of special tokens.

    Args:
        tokenizer: of the model.
        messages: each with `role`, of which the template may make special tokens, `content`, and further keys that it
            reads.
        template: Jinja text; None: the tokenizer's own, or `PLAIN_TEMPLATE`.
        answer: go on to where the assistant's next answer begins (the generation prompt).

    Raises:
        jinja2.TemplateError: the template refuses the messages, or can't be read.
    """
    template = template or getattr(tokenizer, "chat_template", None) or PLAIN_TEMPLATE
    special = _special_tokens(tokenizer)
    there = set(template).union(*(text for message in messages for text in message.values()))
    unused = (chr(code) for code in PRIVATE_USE if chr(code) not in there)
    placeholders = dict(zip(special.telltales, unused, strict=False))
    disguise = str.maketrans(placeholders)
    undisguise = str.maketrans({placeholder: char for char, placeholder in placeholders.items()})
    disguised = [
        {key: text if key == "role" else text.translate(disguise) for key, text in message.items()}
        for message in messages
    ]
    try:
        rendered: Any = tokenizer.apply_chat_template(
            disguised, chat_template=template, tokenize=False, add_generation_prompt=answer
        )
    except TemplateError as error:  # it may quote a message
        raise TemplateError(str(error).translate(undisguise)) from error
    return [piece.translate(undisguise) if isinstance(piece, str) else piece for piece in special.split(rendered)]


@dataclass(frozen=True)
class EndOfTurn:
    """What a template writes after an answer.

    Attributes:
        tokens: the special token right after it, if there is one.
        text: the text before the user's next message; empty if a special token comes first.
    """

    tokens: tuple[int, ...]
    text: str


def end_of_turn(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> EndOfTurn:
    """What ends an assistant's answer by the template: a model that was trained with it says so itself, and one that
    goes on with the user's part has to be stopped.
    """
    said, asked = "said0it", "asked0it"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": said}]
    try:
        pieces = render_chat(tokenizer, [*messages, {"role": "user", "content": asked}], template)
    except TemplateError:  # it wants other messages
        return EndOfTurn((), "")
    for number, piece in enumerate(pieces):
        if isinstance(piece, str) and said in piece:
            after = piece.split(said, 1)[1]
            if asked in after:
                between = after.split(asked, 1)[0]
                return EndOfTurn((), between.rstrip() or between)
            following = pieces[number + 1 : number + 2]
            return EndOfTurn(tuple(token for token in following if isinstance(token, int)), "")
    return EndOfTurn((), "")


def encode_pieces(tokenizer: PreTrainedTokenizerBase, pieces: Iterable[str | int]) -> list[int]:
    """The tokens of what `render_chat` gives; the boundary token if that is empty.

    Raises:
        AvaError: a text is no valid Unicode.
    """
    ids: list[int] = []
    for piece in pieces:
        ids += encode_text(tokenizer, piece) if isinstance(piece, str) else [piece]
    return ids or [tokenizer.eos_token_id]


def encode_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], template: str | None = None
) -> list[int]:
    """The tokens of a chat up to where the next answer begins.

    Raises:
        AvaError: the template refuses the messages, or one is no valid Unicode.
    """
    try:
        return encode_pieces(tokenizer, render_chat(tokenizer, messages, template))
    except TemplateError as error:
        raise AvaError(f"the chat template refuses the messages: {first_line(error)}") from error


class _Added(NamedTuple):
    """A special token, and how the tokenizer finds it in a text."""

    token: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> _SpecialTokens:
    added = sorted(tokenizer.added_tokens_decoder.items())
    return _find_special(
        tuple(
            _Added(token, entry.content, entry.single_word, entry.lstrip, entry.rstrip)
            for token, entry in added
            if entry.special
        )
    )


@lru_cache(maxsize=16)
def _find_special(added: tuple[_Added, ...]) -> _SpecialTokens:
    """Kept: to find the telltales takes longer than to render a chat."""
    return _SpecialTokens(added)


class _SpecialTokens:
    """The special tokens of a tokenizer.

    Attributes:
        telltales: characters of which each special token has one.
    """

    def __init__(self, added: Sequence[_Added]) -> None:
        self._ids = {entry.content: entry.token for entry in added}
        self.telltales = "".join(_cover(self._ids))
        # The longest first, as the tokenizer itself looks for them.
        ordered = sorted(added, key=lambda entry: len(entry.content), reverse=True)
        self._pattern = re.compile("|".join(map(_pattern, ordered))) if ordered else None

    def split(self, text: str) -> Iterator[str | int]:
        """The ids of special tokens, and the texts between them."""
        end = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            yield text[end : match.start()]
            yield self._ids[match[match.lastindex or 0]]
            end = match.end()
        yield text[end:]


def _pattern(added: _Added) -> str:
    """What the tokenizer takes for this token, with the space beside it that it strips."""
    word = re.escape(added.content)
    word = rf"(?<!\w)({word})(?!\w)" if added.single_word else f"({word})"
    return (r"\s*" if added.lstrip else "") + word + (r"\s*" if added.rstrip else "")


def _cover(words: Iterable[str]) -> Iterator[str]:
    """A few characters of which each word has one; punctuation before letters, which templates are likelier to test."""
    left = list(words)
    while left:
        chars = {char for word in left for char in word}
        ranks = [(not char.isspace(), not char.isalnum(), sum(char in word for word in left), char) for char in chars]
        best = max(ranks)[-1]
        yield best
        left = [word for word in left if best not in word]
