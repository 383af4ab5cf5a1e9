"""Streamer of Transformers' `generate` that tells a function the text as it becomes certain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ava_core.generation.text_stream import TextStream


class CallbackStreamer(BaseStreamer):
    """Passes the text of the only sequence on, piece by piece.

    Args:
        tokenizer: of the model.
        stop: strings that end the text, left out of it.
        show: told each piece.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], show: Callable[[str], None]) -> None:
        self.stream, self.show = TextStream(tokenizer, stop), show
        self.prompt = True

    def put(self, value: Tensor) -> None:
        """Take the prompt, which comes first and isn't shown, or a token."""
        if self.prompt:
            self.prompt = False
            return
        self._add("".join(map(self.stream.push, value.flatten().tolist())))

    def end(self) -> None:
        """Show what was held back."""
        self._add(self.stream.flush())

    def _add(self, text: str) -> None:
        if text:
            self.show(text)
