"""Texts that must be JSON of a schema, or match a regular expression: which tokens may come next.

llguidance parses the text so far, byte by byte, and tells which tokens of the vocabulary keep it the beginning of a
valid one. The end of the document is allowed only after a text that is valid as it is.

    constraint = Constraint.json_schema({"type": "object", "properties": {"age": {"type": "integer"}}})
    guide = Guide(constraint, tokenizer, vocab_size)
    while not guide.complete:
        guide.accept(some_token_of(guide.allowed_V))

Shapes: V = entries of the model's vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import llguidance
import numpy as np

from ava_core.errors import AvaError, ConfigError, first_line

if TYPE_CHECKING:
    from ava_core.config.generation import GenerationConfig

WHITESPACE = "[ ]?"
"""Between the tokens of JSON: with more, a small model can write blanks for ever."""
LIMITS = llguidance.LLParserLimits(max_lexer_states=20_000, verbose_errors=False)
"""Of the work for a token, 15 ms or so, and of a lexer's memory, some 40 MB: schemas come from clients."""


@dataclass(frozen=True)
class Constraint:
    """What a text must be as a whole.

    Attributes:
        grammar: as llguidance reads it.
    """

    grammar: str

    @classmethod
    def json_schema(cls, schema: str | Mapping[str, Any]) -> Constraint:
        """JSON that is valid by a JSON Schema (draft 2020-12, as far as llguidance implements it).

        Between its tokens stands at most one space, and an object's properties come in the schema's order.

        Raises:
            ConfigError: it is no schema, asks for what llguidance can't promise (`uniqueItems`, `not`), or no JSON is
                valid by it.
        """
        text = schema if isinstance(schema, str) else json.dumps(schema)
        try:
            # "lenient" would let a schema ignore parts of itself.
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                text, overrides={"whitespace_pattern": WHITESPACE, "lenient": False, "coerce_one_of": False}
            )
        except ValueError as error:
            raise ConfigError(f"must be a JSON object: {first_line(error)}") from error
        return cls(grammar)._checked()

    @classmethod
    def json_object(cls) -> Constraint:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """A text that matches a regular expression from its first character to its last.

        In the syntax of Rust's `regex`, which has neither look-around nor back-references; `.` is any character but the
        line feed.

        Raises:
            ConfigError: it isn't one.
        """
        try:
            grammar = llguidance.LLMatcher.grammar_from_regex(pattern)
        except UnicodeEncodeError as error:
            raise ConfigError(f"isn't valid UTF-8 at character {error.start}") from error
        return cls(grammar)._checked()

    def _checked(self) -> Constraint:
        failed, messages = llguidance.LLMatcher.validate_grammar_with_warnings(self.grammar, limits=LIMITS)
        if failed or messages:
            raise ConfigError(_reason(messages[0]))
        return self


def require_free(settings: GenerationConfig) -> None:
    """Refuse settings that could cut a constrained text short, or forbid the only token that its constraint allows.

    Raises:
        ConfigError: stop strings, `min_new_tokens` or `no_repeat_ngram_size`.
    """
    for name, off in (("stop", []), ("min_new_tokens", 0), ("no_repeat_ngram_size", 0)):
        value = getattr(settings, name)
        if value != off:
            raise ConfigError(
                f"{name} = {value}: can't stand beside a constraint, which says itself how a text ends: leave it out"
            )


class Guide:
    """One text under a constraint, token by token.

    Args:
        constraint: what it must be.
        tokenizer: of the model.
        vocab_size: V, the width of the model's logits; at least the tokenizer's.

    Attributes:
        allowed_V: bool, the tokens that may come next; none after the end.
        complete: the text is valid and nothing can follow.
        valid: the text is valid as it is.

    Raises:
        AvaError: the constraint needs more work or memory than LIMITS has.
    """

    def __init__(self, constraint: Constraint, tokenizer: Any, vocab_size: int) -> None:
        self.allowed_V = np.zeros(vocab_size, bool)
        self.complete = self.valid = False
        self._end = int(tokenizer.eos_token_id)
        self._matcher = llguidance.LLMatcher(
            _vocabulary(tokenizer, vocab_size), constraint.grammar, log_level=0, limits=LIMITS
        )
        self.vocab_size = vocab_size
        self._look_ahead()

    def accept(self, token: int) -> None:
        """Go on with a token; the end of the document completes the text.

        Raises:
            ValueError: it isn't allowed here.
            AvaError: as for the class.
        """
        if not self.allowed_V[token]:
            raise ValueError(f"token {token}: isn't allowed here")
        if token == self._end:
            self.complete, self.allowed_V = True, np.zeros(self.vocab_size, bool)
            return
        self._matcher.consume_token(token)
        self._look_ahead()

    def fork(self) -> Guide:
        """An independent copy: 2 us, against milliseconds for a new one."""
        twin = object.__new__(Guide)
        twin.__dict__.update(self.__dict__, _matcher=self._matcher.deep_copy())
        return twin

    def finds_whole(self, tokens: Iterable[int]) -> bool:
        """Whether these tokens, up to the end of the document, complete a valid text; the guide stays where it is."""
        guide = self.fork()
        for token in tokens:
            if guide.complete:
                break
            guide.accept(token)
        return guide.valid

    def _look_ahead(self) -> None:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise AvaError(f"the text can't be constrained: {_reason(self._matcher.get_error())}")
        self.allowed_V = np.unpackbits(bits, bitorder="little")[: self.vocab_size].astype(bool)
        self.valid = self._matcher.is_accepting()
        # Where nothing but the end may come, it has come.
        self.complete = self.valid and not self.allowed_V[np.arange(self.vocab_size) != self._end].any()


class _Vocabulary:
    """A tokenizer as llguidance takes it: what our texts are made of, which is `token_bytes`."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        from ava_core.generation.prompts import encode_text
        from ava_core.generation.token_bytes import token_bytes

        known = token_bytes(tokenizer)
        self.tokens = [known[token] for token in range(vocab_size)]
        self.eos_token_id, self.bos_token_id = tokenizer.eos_token_id, None
        self.special_token_ids = [token for token, data in enumerate(self.tokens) if not data]
        for token in self.special_token_ids:
            self.tokens[token] = f"<|{token}|>".encode()
        self._encode = lambda text: encode_text(tokenizer, text)

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


@lru_cache(maxsize=8)
def _vocabulary(tokenizer: Any, vocab_size: int) -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(_Vocabulary(tokenizer, vocab_size)), n_vocab=vocab_size, eos_token=None
    )


def _reason(message: str) -> str:
    """The line of llguidance's message that says what is wrong, without the grammar that it has made."""
    found = re.search(r"^error: (.*)$", message, re.MULTILINE) or re.search(r"\(in regex\): ([^/\n]*)", message)
    reason = found[1] if found else message.splitlines()[0]
    return reason.split(" in regex ")[0].strip().rstrip(".")
