"""Incremental detokenization: text as soon as its characters are complete and can't belong to a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from ava_core.generation.token_bytes import token_bytes


class TextStream:
    """Decodes a sequence token by token. Bytes that are no UTF-8 become U+FFFD, as the tokenizer has it.

    Attributes:
        stopped: a stop string occurred; it and what follows are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self.stop = tuple(stop)
        self.stopped = False
        self._bytes = token_bytes(tokenizer)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._echoing = False
        """The next character began in what was echoed."""

    def echo(self, tokens: Iterable[int]) -> str:
        """Begin with these tokens, in which no stop string is searched; return their complete characters."""
        text = self._decoder.decode(b"".join(self._bytes[token] for token in tokens))
        self._echoing = bool(self._decoder.getstate()[0])
        return text

    def push(self, token: int) -> str:
        """Add a token; return the text that has become certain."""
        return "" if self.stopped else self._release(self._decoder.decode(self._bytes[token]))

    def flush(self) -> str:
        """The rest at the end of the sequence: bytes that never became a character, and a stop string's beginning."""
        if self.stopped:
            return ""
        rest = self._release(self._decoder.decode(b"", final=True))
        if not self.stopped:
            rest, self._held = rest + self._held, ""
        return rest

    def _release(self, text: str) -> str:
        """Text up to a stop string, or without an end that may become one."""
        if self._echoing and text:
            self._echoing = False
            return text[0] + self._release(text[1:])
        text = self._held + text
        found = [index for index in (text.find(stop) for stop in self.stop) if index >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
