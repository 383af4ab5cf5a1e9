"""Transformers' `generate` with stop strings and constraints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria

from ava_core.generation.constraints import Guide
from ava_core.generation.token_bytes import token_bytes


class NewStopStrings(StoppingCriteria):
    """A stop string ends in a row's last token and began after the prompt.

    Transformers' own criterion looks at the prompt as well: after "To be, or", the stop string "or not" would end a
    text at " not", of which it is no part.

    Args:
        tokenizer: of the model.
        stop: the strings.
        prompt_length: tokens before the first new one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], prompt_length: int) -> None:
        self.stop = [string.encode() for string in stop]
        self.longest = max(map(len, self.stop))
        self.bytes, self.prompt_length = token_bytes(tokenizer), prompt_length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Bool, one for each row."""
        found = [self._ends(row) for row in input_ids[:, self.prompt_length :].tolist()]
        return torch.tensor(found, dtype=torch.bool, device=input_ids.device)

    def _ends(self, tokens: list[int]) -> bool:
        tail = b""
        for token in reversed(tokens):
            tail = self.bytes[token] + tail
            if len(tail) >= self.longest + len(self.bytes[tokens[-1]]):
                break
        return any(string in tail for string in self.stop)


class GuidedRows:
    """The guides of a batch's rows, or of its beams.

    A row's guide is found by the row's new tokens, for beam search reorders rows and drops them.

    Args:
        guide: before the first token.
        prompt_length: tokens before the first new one.
    """

    def __init__(self, guide: Guide, prompt_length: int) -> None:
        self.prompt_length = prompt_length
        self._guides: dict[tuple[int, ...], Guide | None] = {(): guide}

    def follow(self, input_ids: Tensor) -> list[Guide | None]:
        """Each row's guide; None where the row has a token that wasn't allowed."""
        rows = [tuple(row) for row in input_ids[:, self.prompt_length :].tolist()]
        before = self._guides
        guides = {row: before[row] if row in before else self._after(row) for row in dict.fromkeys(rows)}
        needed = {row: guide for row, guide in before.items() if len(row) >= len(rows[0]) - 1}
        self._guides = needed | guides
        return [guides[row] for row in rows]

    def _after(self, row: tuple[int, ...]) -> Guide | None:
        before = self._guides[row[:-1]]
        if before is None or before.complete:  # after the end comes padding
            return before
        if not before.allowed_V[row[-1]]:
            return None
        guide = before.fork()
        guide.accept(row[-1])
        return guide


class GuidedLogits(LogitsProcessor):
    """Leaves each row the tokens that its guide allows.

    Beams that took another token, for want of enough that are allowed, have a probability of 0 and end nowhere.
    """

    def __init__(self, rows: GuidedRows) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for row, guide in enumerate(self.rows.follow(input_ids)):
            if guide is not None and not guide.complete:
                scores[row, torch.from_numpy(~guide.allowed_V).to(scores.device)] = float("-inf")
        return scores


class GuidedStop(StoppingCriteria):
    """Ends a row where its guide lets nothing follow."""

    def __init__(self, rows: GuidedRows) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        done = [guide is not None and guide.complete for guide in self.rows.follow(input_ids)]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)
