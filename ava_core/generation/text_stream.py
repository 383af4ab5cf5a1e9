"""Text from tokens as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"
"""What a character's first bytes are decoded to while the rest is missing."""


class TextStream:
    """Decodes a sequence token by token.

    Attributes:
        stopped: a stop string was met; what it and anything after it would have added is left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.stopped = False
        self._ids: list[int] = []
        # Decoding begins a few tokens back, for a token's text may depend on the one before it.
        self._from, self._shown = 0, 0
        self._held = ""

    def push(self, token: int) -> str:
        """Add a token; return the text that is certain now."""
        if self.stopped:
            return ""
        self._ids.append(token)
        before = self._decode(self._ids[self._from : self._shown])
        after = self._decode(self._ids[self._from :])
        if after.endswith(UNFINISHED):
            return ""
        self._from, self._shown = self._shown, len(self._ids)
        return self._release(after[len(before) :])

    def flush(self) -> str:
        """The rest at the end of the sequence: bytes that never became a character, and a stop string's beginning."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._from : self._shown])
        rest = self._release(self._decode(self._ids[self._from :])[len(before) :])
        if not self.stopped:
            rest, self._held = rest + self._held, ""
        return rest

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _release(self, text: str) -> str:
        """Text up to a stop string, or without an end that may become one."""
        text = self._held + text
        found = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
