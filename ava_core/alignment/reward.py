"""A reward model: the decoder with one score, trained on pairs of answers."""

from __future__ import annotations

from ava_core.alignment.pair_material import RewardPairs
from ava_core.progress import Progress
from ava_core.training.request import TrainRequest, TrainResult
from ava_core.training.train import train_on


def train(request: TrainRequest, progress: Progress) -> TrainResult:
    """Train a reward model in this process, alone or as one of several ranks.

    Args:
        request: with `init`, and shards of `ava preprocess --for preference`.
        progress: shows progress.

    Raises:
        as `ava_core.training.train.train`.
    """
    return train_on(RewardPairs, request, progress)
