"""What an answer says of the passages that the model read before it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ava_core.retrieval.placing import Placed


def sources_of(placed: Iterable[Placed]) -> list[dict[str, Any]]:
    """The passages in the order of the prompts, and in each as they stood there.

    `prompt` is the prompt's place in the request, from 0, and `number` what the passage was called in it, from 1.
    `text` is the source's own; the model read it without marks and control characters, and if it was `cut` up to
    the end of a sentence.
    """
    return [
        {
            "prompt": prompt,
            "number": number,
            "cut": number > len(passages.found) - passages.cut,
            **found.as_json(),
        }
        for prompt, passages in enumerate(placed)
        for number, found in enumerate(passages.found, 1)
    ]
