"""Settings of decoding by what a text is for: the presets of `--for`. Flags that are given win over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Use:
    """A preset.

    Attributes:
        strategy: of decoding.
        settings: fields of `GenerationConfig`.
    """

    strategy: str
    settings: dict[str, Any]

    def __str__(self) -> str:
        """For the help: strategy and settings, as flags have them."""
        return ", ".join(
            [self.strategy, *(f"{name.replace('_', '-')} {value}" for name, value in self.settings.items())]
        )


USES = {
    "dialogue": Use("nucleus", {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1, "max_new_tokens": 128}),
    "code": Use("nucleus", {"temperature": 0.2, "top_p": 0.95, "max_new_tokens": 256}),
    "verse": Use("min-p", {"temperature": 1.0, "min_p": 0.1, "no_repeat_ngram_size": 4, "max_new_tokens": 128}),
}
"""Dialogue: near to the most probable answer, and none that circles. Code: names and brackets come again and again, so
repetition is no fault in it, and the first text is to be right: temperature 0.2 and top-p 0.95 were best for that in
arXiv 2107.03374. Verse: all that isn't improbable, and no run of four tokens twice."""
