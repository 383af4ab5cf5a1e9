"""Supervised fine-tuning: an ordinary training whose labels are the assistant's answers, and what it has changed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ava_core.alignment.material import Conversations, answer_of
from ava_core.alignment.sampling import sample_answers
from ava_core.config.sft import SftConfig
from ava_core.distributed.ranks import Ranks
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.models.pretrained import load_pretrained
from ava_core.progress import Progress
from ava_core.training.beginning import build_from
from ava_core.training.initial import Parent
from ava_core.training.request import TrainRequest, TrainResult
from ava_core.training.train import train_on

log = logging.getLogger(__name__)


def train(request: TrainRequest, progress: Progress) -> TrainResult:
    """Fine-tune a model in this process, alone or as one of several ranks; rank 0 measures it beside its start.

    Args:
        request: with `init`, and shards of `ava preprocess --for sft`.
        progress: shows progress.

    Raises:
        as `ava_core.training.train.train`.
    """
    result = train_on(Conversations, request, progress)
    if Ranks.from_environment().is_first:
        assert request.init is not None
        result.metrics.update(compare(request, request.init, request.output))
    return result


def compare(request: TrainRequest, start: Path, end: Path) -> dict[str, float]:
    """The held-out answers' loss of both models in float32, and the share of sampled answers that end by themselves."""
    material, config = Conversations(request), request.train_config
    validation = material.validation()
    samples = config.samples if isinstance(config, SftConfig) else 0
    asked = [answer_of(item.tokens, item.learnt) for item in material.shards.read("validation")[:samples]]
    prompts, ends = [prompt.tolist() for prompt, _ in asked], [end for _, end in asked]
    found: dict[str, float] = {}
    # The start with rows for the entries that the tokenizer has got since.
    before = build_from(Parent.read(start), request.model_config, material)
    after, _ = load_pretrained(EnhancedMoEForCausalLM, end)
    for prefix, model in (("start_", before.eval()), ("", after.eval())):
        measured = validation.measure(model, whole=True)
        found[f"{prefix}validation_loss"] = measured["validation_loss"]
        if not prefix:
            found["validation_bits_per_byte"] = measured["validation_bits_per_byte"]
        limit = material.shards.max_tokens
        found[f"{prefix}ended_answers"] = ended_share(model, prompts, ends, limit, request.seed)
    found["validation_loss_gain"] = found["start_validation_loss"] - found["validation_loss"]
    log.info(
        "sft: held-out answers: %.4f nats per token, %.4f before; %.0f%% of the sampled ones end by themselves, %.0f%%"
        " before",
        *(found["validation_loss"], found["start_validation_loss"]),
        *(100 * found["ended_answers"], 100 * found["start_ended_answers"]),
    )
    return found


def ended_share(model: Any, prompts: list[list[int]], ends: list[int], max_new_tokens: int, seed: int) -> float:
    """Share of sampled answers (temperature 1) in which the token that ends an answer comes within the limit.

    Args:
        model: of ours, which answers.
        prompts: token ids of each, up to where the answer begins.
        ends: the token that ends each one's answer.
        max_new_tokens: the limit; less where the model's positions end before.
        seed: of the samples.
    """
    if not prompts:
        return 1.0
    answers = sample_answers(model, prompts, ends, max_new_tokens, seed)
    return sum(end in answer for end, answer in zip(ends, answers, strict=True)) / len(prompts)
