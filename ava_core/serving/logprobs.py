"""Log-probabilities beside the text that they are of: which bytes of it each token gave, and where they stand."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from ava_core.generation.token_bytes import token_bytes
from ava_core.serving.requests import TokenLogprobs


class CharacterPlaces:
    """For each byte of a text, the place of the character that it belongs to, counted in characters."""

    def __init__(self) -> None:
        self.next = 0
        """Place of the character that the next byte begins or goes on with."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> tuple[int, ...]:
        """The places of these bytes, which follow those before."""
        places = []
        for byte in data:
            # A byte that can't go on with the character before it ends that one, as U+FFFD, and belongs to the next.
            self.next += len(self._decoder.decode(bytes([byte])))
            unfinished = bool(self._decoder.getstate()[0])
            places.append(self.next if unfinished else self.next - 1)
        return tuple(places)


class Logprobs:
    """Log-probabilities of one sequence, held back until the text of their tokens is out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._bytes = token_bytes(tokenizer)
        self._characters = CharacterPlaces()
        self._waiting: deque[tuple[TokenLogprobs, tuple[int, ...]]] = deque()

    def add(self, token: int, logprob: float | None, top: Mapping[int, float]) -> None:
        """Take the next token in."""
        begin, data = self._characters.next, self._bytes[token]
        places = self._characters.push(data)
        offset = places[0] if places else begin
        given = TokenLogprobs(token=token, logprob=logprob, top=top, data=data, offset=offset)
        self._waiting.append((given, places))

    def release(self, shown: int, cut: bool) -> tuple[TokenLogprobs, ...]:
        """Those whose text is out.

        Args:
            shown: characters that are out.
            cut: no more will come, for a stop string follows. Of a token that reaches into it, its bytes before it
                are left; the tokens after that are left out.
        """
        released = []
        while self._waiting and max(self._waiting[0][1], default=self._waiting[0][0].offset - 1) < shown:
            released.append(self._waiting.popleft()[0])
        if cut:
            for given, places in self._waiting:
                data = bytes(byte for byte, place in zip(given.data, places, strict=True) if place < shown)
                released += [replace(given, data=data)] if data else []
            self._waiting.clear()
        return tuple(released)
