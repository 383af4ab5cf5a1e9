"""Diverse beam search (Vijayakumar et al., arXiv 1610.02424, algorithm 1): groups of beams that avoid each other.

At each step the groups choose one after the other. A token that beams of earlier groups have chosen at this step loses
`diversity_penalty` for each of them (the Hamming diversity of section 4). With one group it is beam search, and finds
what Transformers' finds: a group ends when no beam of it can still beat the worst of its finished texts.

Transformers keeps its implementation in a repository whose code would have to be run; this one is Ava's own.
Shapes: see `ava_core.models.shapes`; R = beams of all prompts, K = beams of a group, C = 2K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ava_core.generation.rows import Rows

NEVER = -1e9
"""Log-probability of beams that only fill a group up."""


@dataclass
class _Group:
    """The beams of one prompt that are compared with each other.

    Attributes:
        rows: of its beams in the batch.
        scores_K: sums of log-probabilities.
        finished: score and tokens of ended texts, the best first; K at most.
        done: no beam can still get into `finished`.
    """

    rows: slice
    scores_K: Tensor
    finished: list[tuple[float, Tensor]] = field(default_factory=list)
    done: bool = False

    def finish(self, score: float, tokens: Tensor, size: int) -> None:
        """Take an ended text, if it is among the best."""
        self.finished.append((score, tokens))
        self.finished.sort(key=lambda text: -text[0])
        del self.finished[size:]


def diverse_beam_search(
    model: PreTrainedModel,
    batch: Any,
    *,
    processors: Any,
    criteria: Any,
    max_new_tokens: int,
    num_beams: int,
    num_beam_groups: int,
    diversity_penalty: float,
    length_penalty: float,
    ends: Sequence[int],
    padding: int,
    num_return_sequences: int = 1,
) -> Tensor:
    """Continue prompts.

    Args:
        model: causal, of PyTorch or ONNX Runtime.
        batch: `input_ids` and `attention_mask`, (B, S), padded on the left.
        processors: of the log-probabilities, as Transformers calls them in beam search.
        criteria: as Transformers calls them; a text ends at one of `ends`, too.
        max_new_tokens: most tokens to add.
        num_beams: of all groups of a prompt together.
        num_beam_groups: divides `num_beams`.
        diversity_penalty: see above.
        length_penalty: scores are divided by the number of new tokens to this power.
        ends: tokens that end a text.
        padding: fills up shorter ones.
        num_return_sequences: texts for each prompt: the best of each group, then the second of each, and so on.

    Returns:
        int64 (B * num_return_sequences, S + new tokens).
    """
    prompts_BS, size = batch["input_ids"], num_beams // num_beam_groups
    B = len(prompts_BS)
    end_tokens = torch.tensor(ends, device=prompts_BS.device)
    rows = Rows(model)
    logits = rows.read(prompts_BS, batch["attention_mask"]).logits_BV
    every = torch.arange(B, device=prompts_BS.device).repeat_interleave(num_beams)
    rows.select(every)
    logits, sequences = logits[every], prompts_BS[every]
    groups = [_groups(number, num_beams, size, prompts_BS.device) for number in range(B)]
    for length in range(1, max_new_tokens + 1):
        scores = processors(sequences, logits.log_softmax(-1))
        tokens, order = torch.full_like(every, padding), torch.arange(B * num_beams, device=every.device)
        for prompt in groups:
            chosen_V = torch.zeros(scores.shape[-1], device=scores.device)
            for group in prompt:
                if group.done:
                    continue
                candidates = _candidates(group, scores[group.rows] - diversity_penalty * chosen_V, size)
                beams_C, tokens_C, scores_C = candidates
                texts = torch.cat([sequences[group.rows][beams_C], tokens_C[:, None]], dim=1)
                ended_C = torch.isin(tokens_C, end_tokens) | criteria(texts, None) | (length == max_new_tokens)
                for rank in ended_C[:size].nonzero().flatten().tolist():
                    group.finish(float(scores_C[rank]) / length**length_penalty, texts[rank], size)
                group.scores_K, kept_K = (scores_C + NEVER * ended_C).topk(size)
                tokens[group.rows] = tokens_C[kept_K]
                order[group.rows] = group.rows.start + beams_C[kept_K]
                chosen_V += tokens_C[kept_K].bincount(minlength=len(chosen_V))
                best = float(group.scores_K[0]) / length**length_penalty
                group.done = len(group.finished) == size and best <= group.finished[-1][0]
        if length == max_new_tokens or all(group.done for prompt in groups for group in prompt):
            break
        sequences = torch.cat([sequences[order], tokens[:, None]], dim=1)
        rows.select(order)
        logits = rows.go_on(tokens).logits_BV
    found = [text for prompt in groups for text in _best(prompt)[:num_return_sequences]]
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=padding)


def _groups(prompt: int, num_beams: int, size: int, device: torch.device) -> list[_Group]:
    """Those of a prompt. All beams are the same at first, so only the first of each group counts."""
    first_K = torch.full((size,), NEVER, device=device)
    first_K[0] = 0.0
    start = prompt * num_beams
    return [_Group(slice(row, row + size), first_K.clone()) for row in range(start, start + num_beams, size)]


def _candidates(group: _Group, log_probabilities_KV: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Beam, token and score of the best continuations: twice as many as beams, for half of them may be ends."""
    V = log_probabilities_KV.shape[-1]
    scores_C, index_C = (log_probabilities_KV + group.scores_K[:, None]).flatten().topk(2 * size)
    return index_C // V, index_C % V, scores_C


def _best(groups: list[_Group]) -> list[Tensor]:
    """A prompt's texts: the best of each group by score, then the second of each, and so on."""
    ranked = [
        (rank, -score, number, tokens)
        for number, group in enumerate(groups)
        for rank, (score, tokens) in enumerate(group.finished)
    ]
    return [tokens for *_, tokens in sorted(ranked, key=lambda text: text[:3])]
