"""Short trainings on one or several ranks, for the tests of the engine: the same batches whatever the ranks."""

import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import distributed, multiprocessing

from ava_core.config.train import TrainConfig
from ava_core.distributed.ranks import Ranks
from ava_core.losses import IGNORE_INDEX
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.training.adapting import add_updates
from ava_core.training.batch import Batch
from ava_core.training.engine import compiled
from ava_core.training.engine.engine import TrainingEngine
from ava_core.training.freezing import freeze
from ava_core.training.pretraining import NextToken, window_batch

VOCABULARY, LENGTH = 64, 16


def tiny(**overrides) -> EnhancedMoEForCausalLM:
    """About 20,000 parameters, none of whose sizes is a multiple of many ranks."""
    torch.manual_seed(0)
    fields = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "num_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": LENGTH,
        "num_ffn_experts": 3,
        "expert_intermediate_size": 16,
        "max_experts_per_token": 2,
        "router": "expert_bias",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
        **overrides,
    }
    return EnhancedMoEForCausalLM(EnhancedMoEConfig(**fields))


def settings(**overrides) -> TrainConfig:
    """Four micro-batches of two sequences for each step."""
    fields = {
        "steps": 8,
        "warmup_steps": 0,
        "sequence_length": LENGTH,
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "optimizer": "adamw",
        "learning_rate": 0.01,
        "adam_learning_rate": 0.01,
        "precision": "fp32",
        **overrides,
    }
    return TrainConfig(**fields)


def build_engine(model: EnhancedMoEForCausalLM, config: TrainConfig, ranks: Ranks) -> TrainingEngine:
    """An engine that pretrains."""
    if config.adapter.kind:
        add_updates(model, config.adapter)
    objective = NextToken(model, config)
    freeze(model, config)
    return TrainingEngine(model, config, ranks, objective)


def windows(step: int, rank: int = 0, ranks: int = 1, rows: int = 8) -> Batch:
    """A rank's share of the batch of a step: counting upwards from random tokens, so that there is much to learn."""
    starts = np.random.default_rng(step).integers(0, VOCABULARY, (rows, 1))
    tokens = (starts + np.arange(LENGTH + 1)) % VOCABULARY
    share = rows // ranks
    return window_batch(tokens[rank * share : (rank + 1) * share].astype(np.int64), boundary_token_id=0)


def masked_windows(step: int, rank: int = 0, ranks: int = 1) -> Batch:
    """As `windows`, but row r has labels at its last r + 1 positions only: each micro-batch has other numbers."""
    batch, share = windows(step, rank, ranks), 8 // ranks
    rows = torch.arange(rank * share, (rank + 1) * share)[:, None]
    unlabelled = torch.arange(LENGTH) < LENGTH - 1 - rows
    return replace(batch, labels=batch.labels.masked_fill(unlabelled, IGNORE_INDEX))


def train(config: TrainConfig, ranks: Ranks, steps: int = 4, limit: float = 1.0, masked: bool = False, **model) -> dict:
    """Train, measuring in between; figures by name, and the final state as a dictionary of tensors."""
    draw = masked_windows if masked else windows
    engine = build_engine(tiny(**model), config, ranks)
    held_out = windows(99)
    result: dict = {"losses": [], "norms": [], "validation": []}
    for step in range(steps):
        figures = engine.accumulate(draw(step, ranks.rank, ranks.size))
        result["losses"].append(figures["train_loss"])
        result["norms"].append(engine.update(limit))
        engine.model.eval()
        with torch.no_grad():
            inputs = {"input_ids": held_out.input_ids, "shift_labels": held_out.labels}
            output = engine.model(**inputs, return_logits=False, use_cache=False)
        result["validation"].append(float(output.loss_parts["cross_entropy"]))
    result["state"] = {name: value.clone() for name, value in engine.exact_state_dict().items()}
    return result


def traced(compile_, *function, **how):
    """In place of `torch.compile`: our graphs, forward and backward, run without Inductor, which needs a GPU."""
    if how.get("options") == {"deterministic": True}:  # not DeepSpeed's
        del how["options"]
        how["backend"] = "aot_eager"
    return compile_(*function, **how)


def on_ranks(ranks: int, folder: Path, cases: dict[str, dict]) -> list[dict[str, dict]]:
    """The results of `train` for each case (name: fields of the configuration, and `options` of `train`), by rank."""
    multiprocessing.spawn(_work, (ranks, str(folder), json.dumps(cases)), nprocs=ranks)
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


def _work(rank: int, ranks: int, folder: str, cases: str) -> None:
    torch.set_num_threads(1)
    os.environ["DS_ACCELERATOR"] = "cpu"
    store = distributed.FileStore(f"{folder}/store", ranks)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    me = Ranks(rank, 0, ranks, 1)  # as if on a machine of its own, so that a small machine takes part with four ranks
    # There is no GPU in these tests.
    compiled.require_compiler, torch.compile = lambda: None, partial(traced, torch.compile)
    results = {}
    for name, fields in json.loads(cases).items():
        options = fields.pop("options", {})
        results[name] = train(settings(**fields), me, **options)
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()
    sys.stdout.flush()
