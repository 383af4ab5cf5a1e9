"""Log-likelihood of continuations, batched over rows of a KV cache, with what contexts share computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ava_core.tasks.branches import Branch, Group, make_plan
from ava_core.tasks.rows import Rows, rows_of

Request = tuple[Sequence[int], Sequence[int]]
"""Context and continuation, as tokens."""


class Scorer:
    """Scores continuations with one model.

    Args:
        model: as `load_model` gives it, or one in training, in evaluation mode.
        rows: contexts at once.
        max_length: inputs that the model may be given; longer requests lose their beginning.
    """

    def __init__(self, model: PreTrainedModel, rows: int, max_length: int) -> None:
        self.rows, self.max_length = rows, max_length
        self.cache: Rows = rows_of(model)

    def score(
        self, requests: Sequence[Request], advance: Callable[[int], None] = lambda done: None
    ) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether greedy decoding would give it.

        Args:
            requests: neither part of any may be empty.
            advance: told how many more requests are done.

        Raises:
            ValueError: a part is empty, or a continuation longer than `max_length`.
        """
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        if not requests:
            return results
        plan = make_plan(requests, self.max_length)
        rows = min(self.rows, len(plan.groups))
        prefix = max(len(group.prefix) for group in plan.groups)
        branch = max(len(group.branches[0].tokens) for group in plan.groups)
        self.cache.begin(plan.stem, rows, min(len(plan.stem) + prefix + branch, self.max_length))
        for start in range(0, len(plan.groups), rows):
            self._score_groups(plan.groups[start : start + rows], results, advance)
        return results

    def _score_groups(
        self, groups: list[Group], results: list[tuple[float, bool]], advance: Callable[[int], None]
    ) -> None:
        self.cache.load([group.prefix for group in groups])
        # Groups come with the most branches first: those that have one more are the first rows.
        for turn in range(len(groups[0].branches)):
            branches = [group.branches[turn] if turn < len(group.branches) else None for group in groups]
            logits_RSV = self.cache.logits([branch.tokens if branch else () for branch in branches])
            done = 0
            for row, branch in enumerate(branches):
                if branch is not None:
                    _read(logits_RSV[row], branch, results)
                    done += len(branch.targets)
            advance(done)


def _read(logits_SV: Tensor, branch: Branch, results: list[tuple[float, bool]]) -> None:
    first = min(target.first for target in branch.targets)
    log_probabilities_SV = torch.log_softmax(logits_SV[first : len(branch.tokens)].float(), dim=-1)
    greedy_S = log_probabilities_SV.argmax(dim=-1)
    for target in branch.targets:
        tokens = torch.tensor(target.tokens, device=logits_SV.device)
        part = slice(target.first - first, target.first - first + len(tokens))
        likelihood = log_probabilities_SV[part].gather(1, tokens[:, None]).sum()
        results[target.request] = float(likelihood), bool((greedy_S[part] == tokens).all())
