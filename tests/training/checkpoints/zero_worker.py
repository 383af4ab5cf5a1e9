"""A tiny model under DeepSpeed, trained and resumed by one process or by several that run this file.

    RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python zero_worker.py FOLDER

At each ZeRO stage, several processes train to the end, train half and go on, and go on from two checkpoints of one
process: of the same stage and of another one (`FOLDER/r1-sSTAGE`). They leave the weights in `FOLDER/weights.pt` and
their checkpoints in `FOLDER/r2-sSTAGE`.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from ava_core.config.train import TrainConfig
from ava_core.distributed.deepspeed import import_deepspeed
from ava_core.distributed.group import connect
from ava_core.distributed.ranks import Ranks
from ava_core.training.checkpoints import CheckpointFolder, resume_from

IDENTITY = {"model": "0" * 64, "tokenizer": "1" * 64, "optimizer": "adamw", "precision": "fp32"}
STAGES = (0, 1, 2, 3)
BATCH, HALF, WHOLE = 8, 4, 8
PRECISION = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
}


class TinyModel(nn.Module):
    """Sizes that no number of ranks divides, so that slices and padding fall inside parameters."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.norm = nn.Linear(7, 13), nn.Linear(13, 5), nn.LayerNorm(5)
        self.register_buffer("batches", torch.zeros(1))

    def forward(self, rows):
        self.batches += 1
        hidden = nn.functional.dropout(torch.tanh(self.first(rows)), 0.1, training=self.training)
        return (self.norm(self.last(hidden)) ** 3).mean()


def build(stage, ranks, *, rate=1e-2, precision="fp32", dropout=True):
    """Something with `.deepspeed` and `.groups`, as the training engine has them."""
    deepspeed = import_deepspeed()
    connect(ranks)
    torch.manual_seed(7)
    model = TinyModel().train(dropout)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1, "peak_lr": rate},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0, "peak_lr": rate},
    ]
    settings = {
        "train_batch_size": BATCH,
        "train_micro_batch_size_per_gpu": BATCH // ranks.size,
        # DeepSpeed allocates the buckets: by default 500 million elements.
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 256, "allgather_bucket_size": 256},
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        **PRECISION[precision],
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(groups, lr=rate), config=settings, dist_init_required=False
    )
    engine.train(dropout)
    return SimpleNamespace(deepspeed=engine, groups="matrices and vectors")


def advance(engine, ranks, first, last):
    """Steps first + 1 to last; each rank computes its share of a batch that depends on the step alone."""
    for step in range(first, last):
        rows = torch.randn(BATCH, 7, generator=torch.Generator().manual_seed(step)).to(
            next(engine.deepspeed.module.parameters()).dtype
        )
        loss = engine.deepspeed(rows.chunk(ranks.size)[ranks.rank])
        engine.deepspeed.backward(loss)
        engine.deepspeed.step()


def weights(engine):
    """Exact float32 weights and the buffer, by name."""
    from deepspeed.utils import safe_get_full_fp32_param

    zero = engine.deepspeed.zero_optimization_stage()
    exact = {
        name: (safe_get_full_fp32_param(p) if zero else p).detach().float().clone()
        for name, p in engine.deepspeed.module.named_parameters()
    }
    return exact | {"batches": engine.deepspeed.module.batches.clone()}


def folder_of(folder, stage, ranks):
    """The checkpoints of one run."""
    return CheckpointFolder(Path(folder) / f"r{ranks.size}-s{stage}", TrainConfig(zero_stage=stage), ranks, IDENTITY)


def train_half(folder, stage, ranks, seed=None, **options):
    """Train half the steps and leave a checkpoint."""
    engine = build(stage, ranks, **options)
    if seed is not None:
        torch.manual_seed(seed)
    advance(engine, ranks, 0, HALF)
    checkpoints = folder_of(folder, stage, ranks)
    checkpoints.save(engine, HALF, {"clock": {"seconds": 1.5, "t": torch.ones(2)}}, 3.0, tokens_seen=64)
    checkpoints.close()


def resumed(folder, stage, ranks, source, source_ranks, **options):
    """Weights after the other half, from the checkpoint of another stage or number of ranks."""
    engine = build(stage, ranks, **options)
    path = Path(folder) / f"r{source_ranks}-s{source}"
    restored = resume_from(engine, path, IDENTITY, ranks, TrainConfig(zero_stage=stage))
    assert (restored.step, restored.tokens_seen) == (HALF, 64)
    advance(engine, ranks, HALF, WHOLE)
    return weights(engine)


def other_stage(stage):
    """Each stage is left for another one, and reached from another one."""
    return (stage + 1) % len(STAGES)


def main(folder):
    ranks = Ranks.from_environment()
    found = {}
    for stage in STAGES:
        engine = build(stage, ranks)
        torch.manual_seed(100 + ranks.rank)  # ranks drop out different activations
        advance(engine, ranks, 0, WHOLE)
        found["whole", stage] = weights(engine)
        train_half(folder, stage, ranks, seed=100 + ranks.rank)
        found["resumed", stage] = resumed(folder, stage, ranks, stage, ranks.size)
        engine = build(stage, ranks, dropout=False)
        advance(engine, ranks, 0, WHOLE)
        found["plain", stage] = weights(engine)
        for source in (stage, other_stage(stage)):
            found["of one", source, stage] = resumed(folder, stage, ranks, source, 1, dropout=False)
    if ranks.is_first:
        torch.save(found, Path(folder) / "weights.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
