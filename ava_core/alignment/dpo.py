"""Direct preference optimisation, and what it has changed beside the start."""

from __future__ import annotations

from ava_core.alignment.asking import asked_of
from ava_core.alignment.comparison import compare
from ava_core.alignment.pair_material import PreferredPairs
from ava_core.config.preference_training import DpoConfig
from ava_core.distributed.ranks import Ranks
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.models.pretrained import load_pretrained
from ava_core.progress import Progress
from ava_core.training.request import TrainRequest, TrainResult
from ava_core.training.train import train_on


def train(request: TrainRequest, progress: Progress) -> TrainResult:
    """Align a model in this process, alone or as one of several ranks; rank 0 measures it beside its start.

    Args:
        request: with `init`, and shards of `ava preprocess --for preference`.
        progress: shows progress.

    Raises:
        as `ava_core.training.train.train`.
    """
    result = train_on(PreferredPairs, request, progress)
    if Ranks.from_environment().is_first:
        assert isinstance(request.train_config, DpoConfig)
        material = PreferredPairs(request)
        end, _ = load_pretrained(EnhancedMoEForCausalLM, request.output)
        asked = asked_of(material, request.train_config)
        result.metrics.update(compare(material.start(), end.eval(), asked, request.output))
    return result
