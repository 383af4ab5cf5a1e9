"""Log-probabilities of generated tokens, with the bytes of the text that each token gave and their offset."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from ava_core.generation.token_bytes import token_bytes
from ava_core.serving.requests import TokenLogprobs


class CharacterOffsets:
    """For each byte of a text, the offset of the character that it belongs to, counted in characters."""

    def __init__(self) -> None:
        self.next = 0
        """Offset of the character that the next byte begins or continues."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> tuple[int, ...]:
        """The offsets of the next bytes."""
        offsets = []
        for byte in data:
            # A byte that can't go on with the character before it ends that one, as U+FFFD, and belongs to the next.
            self.next += len(self._decoder.decode(bytes([byte])))
            unfinished = bool(self._decoder.getstate()[0])
            offsets.append(self.next if unfinished else self.next - 1)
        return tuple(offsets)


class Logprobs:
    """Log-probabilities of one sequence, buffered until the text of their tokens has been sent."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._bytes = token_bytes(tokenizer)
        self._characters = CharacterOffsets()
        self._waiting: deque[tuple[TokenLogprobs, tuple[int, ...]]] = deque()

    def add(self, token: int, logprob: float | None, top: Mapping[int, float]) -> None:
        """Add the next token."""
        begin, data = self._characters.next, self._bytes[token]
        offsets = self._characters.push(data)
        offset = offsets[0] if offsets else begin
        given = TokenLogprobs(token=token, logprob=logprob, top=top, data=data, offset=offset)
        self._waiting.append((given, offsets))

    def release(self, shown: int, cut: bool) -> tuple[TokenLogprobs, ...]:
        """Those whose text has been sent.

        Args:
            shown: characters that have been sent.
            cut: the text ended before a stop string. A token that reaches into the string keeps its bytes before it;
                later tokens are dropped.
        """
        released = []
        while self._waiting and max(self._waiting[0][1], default=self._waiting[0][0].offset - 1) < shown:
            released.append(self._waiting.popleft()[0])
        if cut:
            for given, offsets in self._waiting:
                data = bytes(byte for byte, offset in zip(given.data, offsets, strict=True) if offset < shown)
                released += [replace(given, data=data)] if data else []
            self._waiting.clear()
        return tuple(released)
