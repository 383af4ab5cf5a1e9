"""The curvature that Sophia scales its steps with, estimated over all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ava_core.distributed.ranks import Ranks
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.training.batch import Batch
from ava_core.training.objective import TrainedModel
from ava_core.training.optimizers import Sophia, curvature_generator, sampled_label_gradients


def estimate_curvature(
    optimizer: Sophia, model: TrainedModel, passes: Sequence[Batch], step: int, ranks: Ranks
) -> None:
    """A second backward pass over a step's micro-batches, on labels drawn from the model (arXiv 2305.14342, alg. 2).

    To be called by all ranks.
    """
    assert isinstance(model, EnhancedMoEForCausalLM), "Sophia draws labels from a model of tokens"
    generator = curvature_generator(torch.initial_seed(), step, ranks.rank)
    with torch.enable_grad():
        sums, tokens = sampled_label_gradients(model, [micro.model_inputs for micro in passes], generator)
    if ranks.size > 1:
        for parameter in model.parameters():  # in the same order on all ranks
            if parameter in sums:
                torch.distributed.all_reduce(sums[parameter])
        tokens *= ranks.size
    optimizer.update_curvature(sums, tokens)
