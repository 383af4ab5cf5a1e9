"""Direct preference optimisation, and what it has changed beside the start."""

from __future__ import annotations

from ava_core.alignment.comparison import Asked, compare
from ava_core.alignment.material import answer_of
from ava_core.alignment.pair_material import PreferredPairs
from ava_core.config.preference_training import DpoConfig
from ava_core.distributed.ranks import Ranks
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.models.pretrained import load_pretrained
from ava_core.progress import Progress
from ava_core.training.beginning import build_from
from ava_core.training.initial import Parent
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
        assert request.init is not None and isinstance(request.train_config, DpoConfig)
        material = PreferredPairs(request)
        # Each prompt is there twice, once for each side.
        items = material.shards.read("validation")[: 2 * request.train_config.samples : 2]
        asked = Asked.of([answer_of(item.tokens, item.learnt) for item in items], material.shards, request.seed)
        start = build_from(Parent.read(request.init), request.model_config, material).eval()
        end, _ = load_pretrained(EnhancedMoEForCausalLM, request.output)
        result.metrics.update(compare(start, end.eval(), asked))
    return result
