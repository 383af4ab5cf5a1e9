"""Scoring a token stream with a model: every token once, in windows that don't overlap.

Shapes as in `ava_core.models.shapes`; a window has S tokens.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ava_core.data.batches import ScoringBatch, bits_per_byte, document_ids, scoring_windows
from ava_core.errors import AvaError
from ava_core.evaluation import frequency
from ava_core.evaluation.classification import BINS, CLASSES
from ava_core.evaluation.experts import LayerCounts
from ava_core.files import write_whole
from ava_core.losses.token import IGNORE_INDEX, token_nll

SAVE_EVERY_SECONDS = 10.0


@dataclass(kw_only=True)
class Score:
    """Sums over the scored tokens; everything that is reported follows from them.

    Attributes:
        batches: batches that are in the sums.
        tokens: scored tokens.
        nats: their negative log-likelihood, summed.
        correct: tokens to which the model gave the highest logit of all; a tie counts against it.
        top5: tokens among the five highest, likewise.
        right, wrong: tokens in `correct` and the others, by bin of the top-1 probability, BINS numbers each.
        class_pairs: the confusion matrix of token classes, flattened by rows (true token), CLASSES x CLASSES numbers.
        position_nats, position_tokens: nats and tokens by position in the window, S numbers each.
        unit_nats, unit_correct, unit_top5: nats and right tokens by unit of the text, up to the last that was begun.
        frequency_nats, frequency_tokens: nats and tokens by how often the token occurs in the text; see `frequency`.
        layers: what each layer's router did.
    """

    batches: int = 0
    tokens: int = 0
    nats: float = 0.0
    correct: int = 0
    top5: int = 0
    right: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    class_pairs: list[int] = field(default_factory=list)
    position_nats: list[float] = field(default_factory=list)
    position_tokens: list[int] = field(default_factory=list)
    unit_nats: list[float] = field(default_factory=list)
    unit_correct: list[int] = field(default_factory=list)
    unit_top5: list[int] = field(default_factory=list)
    frequency_nats: list[float] = field(default_factory=list)
    frequency_tokens: list[int] = field(default_factory=list)
    layers: list[LayerCounts] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Score:
        """What `save` wrote; an empty score if there is nothing."""
        if not path.is_file():
            return cls()
        fields = json.loads(path.read_text())
        return cls(**{**fields, "layers": [LayerCounts(**layer) for layer in fields["layers"]]})

    def save(self, path: Path) -> None:
        """Write all sums to `path`, whole or not at all; JSON keeps every bit of a float."""
        write_whole(path, json.dumps(asdict(self)), durable=True)


def score(
    model: PreTrainedModel,
    tokens: np.ndarray,
    *,
    sequence_length: int,
    boundary_token_id: int,
    token_classes: np.ndarray,
    units: np.ndarray,
    batch_size: int,
    kept: Path,
    advance: Callable[..., None] = lambda done, **figures: None,
) -> Score:
    """Score a stream of tokens; attention doesn't cross document boundaries, as in training.

    Args:
        model: gives `logits` and, with `output_router_logits`, `router_logits` and `router_choices`.
        tokens: the stream, shape (num_tokens,).
        sequence_length: S, the training context.
        boundary_token_id: the token that ends a document.
        token_classes: class of each token, int64 of shape (V,).
        units: number of the unit that each token of the stream belongs to, never decreasing, shape (num_tokens,).
        batch_size: windows at once.
        kept: file for the sums so far; after a kill the next run resumes from it, with the same sums in the end.
        advance: called with the number of tokens done.

    Raises:
        AvaError: the loss is not finite.
    """
    result = Score.load(kept)
    saved = time.monotonic()
    classes_V = torch.from_numpy(token_classes).to(model.device)
    frequency_V = frequency.bins(tokens)
    windows = scoring_windows(tokens, sequence_length, boundary_token_id, batch_size=batch_size)
    for batch in islice(windows, result.batches, None):
        with torch.inference_mode():
            first = result.tokens
            nll_T, rank_T = _add_batch(result, model, batch, boundary_token_id, classes_V)
        here = slice(first, result.tokens)  # the windows follow each other, so their tokens do
        _add_units(result, units[here], nll_T, rank_T)
        _add_frequencies(result, frequency_V[tokens[here]], nll_T)
        if not math.isfinite(result.nats):
            raise AvaError(
                f"the loss is {result.nats} at test token {result.tokens}: the model is damaged, train it again"
            )
        advance(result.tokens, bits_per_token=f"{result.nats / math.log(2) / result.tokens:.3f}")
        if time.monotonic() - saved > SAVE_EVERY_SECONDS:
            result.save(kept)
            saved = time.monotonic()
    result.save(kept)
    return result


def _add_batch(
    result: Score, model: PreTrainedModel, batch: ScoringBatch, boundary_token_id: int, classes_V: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Add a batch to the sums over all tokens; the loss and the rank of each scored token, in their order."""
    device = model.device
    mask_BS = torch.from_numpy(batch.mask).to(device)
    labels_BS = torch.from_numpy(batch.targets).to(device).masked_fill_(~mask_BS, IGNORE_INDEX)
    outputs = model(
        input_ids=torch.from_numpy(batch.inputs).to(device),
        document_ids=torch.from_numpy(document_ids(batch.inputs, boundary_token_id)).to(device),
        use_cache=False,
        output_router_logits=True,
    )
    nll_BS = token_nll(outputs.logits, labels_BS).double()
    label_logits_BS = outputs.logits.gather(-1, labels_BS.clamp_min(0)[..., None]).squeeze(-1)
    rank_BS = _pessimistic_rank(outputs.logits, label_logits_BS)
    result.batches += 1
    result.tokens += int(mask_BS.sum())
    result.nats += float(nll_BS.sum())
    result.correct += int(((rank_BS < 1) & mask_BS).sum())
    result.top5 += int(((rank_BS < 5) & mask_BS).sum())
    result.position_nats = _add(result.position_nats, nll_BS.sum(dim=0).tolist())
    result.position_tokens = _add(result.position_tokens, mask_BS.sum(dim=0).tolist())
    top_BS, predicted_BS = outputs.logits.max(dim=-1)
    # Log of the most probable token's probability: the label's is -nll, and the logits differ by as much.
    confidence_BS = (top_BS.double() - label_logits_BS - nll_BS).exp()
    _add_answers(result, confidence_BS[mask_BS], rank_BS[mask_BS] < 1)
    pairs_T = classes_V[labels_BS[mask_BS]] * len(CLASSES) + classes_V[predicted_BS[mask_BS]]
    result.class_pairs = _add(result.class_pairs, torch.bincount(pairs_T, minlength=len(CLASSES) ** 2).tolist())
    _add_routing(result, outputs, mask_BS.reshape(-1))
    return nll_BS[mask_BS].cpu().numpy(), rank_BS[mask_BS].cpu().numpy()


def _add_units(result: Score, units_T: np.ndarray, nll_T: np.ndarray, rank_T: np.ndarray) -> None:
    first, numbers_T = int(units_T[0]), units_T - int(units_T[0])
    _add_from(first, result.unit_nats, np.bincount(numbers_T, nll_T))
    _add_from(first, result.unit_correct, np.bincount(numbers_T, rank_T < 1).astype(int))
    _add_from(first, result.unit_top5, np.bincount(numbers_T, rank_T < 5).astype(int))


def _add_frequencies(result: Score, bins_T: np.ndarray, nll_T: np.ndarray) -> None:
    result.frequency_nats = _add(result.frequency_nats, np.bincount(bins_T, nll_T, frequency.BINS).tolist())
    result.frequency_tokens = _add(result.frequency_tokens, np.bincount(bins_T, minlength=frequency.BINS).tolist())


def _pessimistic_rank(logits_BSV: Tensor, label_logits_BS: Tensor) -> Tensor:
    """How many other tokens have a logit at least as high as the label's: ties count against the model."""
    return (logits_BSV >= label_logits_BS[..., None]).sum(dim=-1) - 1


def _add_answers(result: Score, confidence_T: Tensor, right_T: Tensor) -> None:
    bins_T = (confidence_T * BINS).ceil().long().clamp(1, BINS) - 1
    result.right = _add(result.right, torch.bincount(bins_T[right_T], minlength=BINS).tolist())
    result.wrong = _add(result.wrong, torch.bincount(bins_T[~right_T], minlength=BINS).tolist())


def _add_routing(result: Score, outputs: Any, mask_T: Tensor) -> None:
    if not result.layers:
        result.layers = [LayerCounts(chosen=[0] * choices.shape[1]) for choices in outputs.router_choices]
    for layer, choices_TE, logits_TE in zip(result.layers, outputs.router_choices, outputs.router_logits, strict=True):
        layer.chosen = _add(layer.chosen, choices_TE[mask_T].sum(dim=0).tolist())
        entropy_T = torch.special.entr(logits_TE[mask_T].float().softmax(dim=-1)).sum(dim=-1)
        layer.router_entropy += float(entropy_T.double().sum())


def _add_from(first: int, sums: list, terms: np.ndarray) -> None:
    """Add the terms from place `first` on, in place: there may be many sums, and of a batch's terms there are few."""
    sums.extend([0] * (first + len(terms) - len(sums)))
    for place, term in enumerate(terms.tolist(), first):
        sums[place] += term


def _add(sums: list, terms: list) -> list:
    return [a + b for a, b in zip(sums, terms, strict=True)] if sums else terms


def describe_score(result: Score, num_bytes: int) -> dict[str, float]:
    """Loss in nats per token, perplexity, bits per byte of the text, and top-1 and top-5 accuracy of the next token."""
    loss = result.nats / result.tokens
    return {
        "test_loss": loss,
        "test_perplexity": float(np.exp(loss)),
        "test_bits_per_byte": float(bits_per_byte(result.nats, num_bytes)),
        "test_accuracy": result.correct / result.tokens,
        "test_top5_accuracy": result.top5 / result.tokens,
    }
