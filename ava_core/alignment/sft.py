"""Supervised fine-tuning: an ordinary training whose labels are the assistant's answers, and what it has changed."""

from __future__ import annotations

import logging

from ava_core.alignment.asking import asked_of
from ava_core.alignment.comparison import compare
from ava_core.alignment.material import Conversations
from ava_core.config.sft import SftConfig
from ava_core.distributed.ranks import Ranks
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.models.pretrained import load_pretrained
from ava_core.progress import Progress
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
        result.metrics.update(measure(request))
    return result


def measure(request: TrainRequest) -> dict[str, float]:
    """The held-out answers' loss of both models in float32, and what `comparison.compare` says of their samples."""
    material, config = Conversations(request), request.train_config
    assert isinstance(config, SftConfig)
    validation = material.validation()
    found: dict[str, float] = {}
    before = material.start()
    after, _ = load_pretrained(EnhancedMoEForCausalLM, request.output)
    for prefix, model in (("start_", before), ("", after.eval())):
        measured = validation.measure(model, whole=True)
        found[f"{prefix}validation_loss"] = measured["validation_loss"]
        if not prefix:
            found["validation_bits_per_byte"] = measured["validation_bits_per_byte"]
    found["validation_loss_gain"] = found["start_validation_loss"] - found["validation_loss"]
    log.info(
        "sft: held-out answers: %.4f nats per token, %.4f before",
        *(found["validation_loss"], found["start_validation_loss"]),
    )
    return found | compare(before, after, asked_of(material, config), request.output)
