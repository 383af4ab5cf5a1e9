"""`ava train --find-lr`: the learning-rate range test on a configuration's own model and batches."""

from __future__ import annotations

import logging
from pathlib import Path

from ava_core.config.model import ModelConfig
from ava_core.config.train import TrainConfig
from ava_core.data.curriculum import build_batches
from ava_core.data.shards import ShardedSplit
from ava_core.data.tokenizer_identity import require_extension
from ava_core.distributed.group import connect
from ava_core.distributed.ranks import Ranks
from ava_core.progress import Progress
from ava_core.training.beginning import build_from, build_model
from ava_core.training.engine.engine import TrainingEngine
from ava_core.training.find_rate import DEFAULT_CRITERION, RateSearch, find_rate
from ava_core.training.freezing import freeze
from ava_core.training.initial import Parent
from ava_core.training.memory.plan import plan_memory
from ava_core.training.pretraining import NextToken, StreamBatches
from ava_core.training.process import prepare

log = logging.getLogger(__name__)
STEPS = 100


def explore_rates(
    *,
    model_config: ModelConfig,
    train_config: TrainConfig,
    seed: int,
    shards: Path,
    output: Path,
    threads: int,
    progress: Progress,
    init: Path | None = None,
    criterion: str = DEFAULT_CRITERION,
) -> RateSearch:
    """Sweep the rate over `STEPS` steps in this process, and write learning_rate.json and learning_rate.png.

    Arguments as of `ava_core.training.train.train`, and `criterion` as of `find_rate`; more than one process isn't
    needed for a suggestion.

    Raises:
        ConfigError: the model to begin from has another tokenizer.
    """
    if init:
        require_extension(init, shards)
    config = train_config.model_copy(update={"processes": 1, "hostfile": None})
    ranks = Ranks()
    connect(ranks)
    prepare(threads, seed)
    split = ShardedSplit.open(shards, "train")
    if init:
        model = build_from(Parent.read(init), model_config, split, config.adapter)
    else:
        model = build_model(model_config, split)
    objective = NextToken(model, config)
    freeze(model, config)
    plan_memory(model, config, ranks).apply(model)
    engine = TrainingEngine(model, config, ranks, objective)
    order = build_batches(split.tokens, split.boundary_token_id, config, seed)
    batches = StreamBatches(order, split.boundary_token_id)
    with progress.task("find-lr", STEPS) as advance:

        def counted():
            for step in range(STEPS):
                yield batches.batch(step)
                advance(step + 1)

        search = find_rate(engine, counted(), steps=STEPS, criterion=criterion)
    output.mkdir(parents=True, exist_ok=True)
    search.write(output)
    settings = ", ".join(f"{name} = {value:.3g}" for name, value in search.settings.items())
    log.info("find-lr: suggests %s by %s (%s)", settings, criterion, output / "learning_rate.png")
    return search
