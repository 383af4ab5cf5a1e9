"""The memory that a training takes at its peak, part by part: one formula for `ava config show` and for the training.

The command has nothing but the configuration; the training knows its real parameters, measures what its layers keep
and how much its process has before them, and puts that into the same formula. It is about one process. Corpus shards
aren't counted: they are mapped files, whose pages the kernel takes back when it needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ava_core.config.activations import LayerMemory, head_bytes, layer_memory
from ava_core.config.adapter import divide_adapted
from ava_core.config.hardware import kernels_path
from ava_core.config.model import ModelConfig
from ava_core.config.optimizers import OPTIMIZERS
from ava_core.config.parameters import Parameter, active_count, count, parameters_of
from ava_core.config.patterns import divide
from ava_core.config.precision import FLOAT32, WIDTHS
from ava_core.config.train import TrainConfig

PROCESS_BYTES = 620 * 2**20
"""Of Python, torch, DeepSpeed, Transformers and datasets, imported and at work, with threads and the allocator's slack:
a training of the smallest model, less what its parts below say. A third of it are libraries' pages, which all processes
share. On Linux with PyTorch's CPU build; measured by `python -m benchmarks.memory`."""
ONEDNN_BYTES = 300 * 2**20
"""More than that where PyTorch's products in half precision compute (those in float32 are MKL's). oneDNN keeps the code
that it generates for each size that it meets, up to 1,024 of them, and experts get another number of rows at every
step: the smallest model's training grew from 0.91 GiB in its second step to 1.20 in its 150th."""
MUON_WORKSPACE = 12
"""Bytes per entry of the largest stack of matrices of one shape: in float32 before and after the orthogonalisation, and
the temporaries of the Newton-Schulz iteration."""


@dataclass(frozen=True)
class Estimate:
    """Size of a model and of its training.

    Attributes:
        parameters: all of them; tied embeddings count once.
        active_parameters: those that one token passes, at most: of the FFN experts only as many as a token may have.
        parts: bytes by what takes them, as `memory_parts` has them.
        frozen_parameters: of all, those that aren't trained.
        trained_parameters: those that are: an adapter's aren't among `parameters`.
    """

    parameters: int
    active_parameters: int
    parts: dict[str, int]
    frozen_parameters: int = 0
    trained_parameters: int = 0

    @property
    def total_bytes(self) -> int:
        """Memory that one process of the training takes at its peak."""
        return sum(self.parts.values())


def estimate(model: ModelConfig, train: TrainConfig, vocab_size: int, kernels: str | None = None) -> Estimate:
    """Count parameters and estimate the memory of one process of a training.

    Args:
        model: the architecture.
        train: batch, context, precision, optimiser, and how many processes share what.
        vocab_size: entries of the tokenizer.
        kernels: what computes, see `kernels_path`; by default that of this machine.
    """
    kernels = kernels or kernels_path()
    parameters = parameters_of(model, vocab_size)
    layers = layer_memory(model, train, vocab_size, kernels)
    if train.adapter.kind:
        trained, frozen, formed = divide_adapted(parameters, train.adapter)
        layers = _with_sums(layers, formed, WIDTHS[train.precision])
    else:
        trained, frozen = divide(parameters, train.freeze)
    recomputed = model.num_layers if train.gradient_checkpointing else 0
    activations = layers.peak(recomputed, head_bytes(train, model.hidden_size, vocab_size, kernels))
    return Estimate(
        parameters=count(parameters),
        active_parameters=active_count(model, vocab_size),
        parts=memory_parts(
            trained,
            train,
            process_bytes(train, kernels),
            activations,
            ranks=train.processes,
            gpu=kernels == "gpu",
            frozen=count(frozen),
        ),
        frozen_parameters=count(frozen),
        trained_parameters=count(trained),
    )


def _with_sums(layers: LayerMemory, formed: Sequence[Parameter], width: int) -> LayerMemory:
    """Memory of layers that form sums of their weights with updates for a pass, and keep them for its backward pass."""
    entries = [parameter.entries // parameter.copies for parameter in formed]
    return replace(
        layers,
        saved=tuple(saved + width * sum(entries) for saved in layers.saved),
        largest=tuple(max(largest, width * max(entries, default=0)) for largest in layers.largest),
    )


def process_bytes(train: TrainConfig, kernels: str, present: int = 0) -> int:
    """Bytes that a process takes without a model: at least `present`, what it has already; on a GPU just that."""
    if kernels == "gpu":
        return present
    by_onednn = WIDTHS[train.precision] < FLOAT32 and not (kernels == "native" and train.precision == "bf16")
    return max(present, PROCESS_BYTES) + (ONEDNN_BYTES if by_onednn else 0)


def memory_parts(
    parameters: Sequence[Parameter],
    train: TrainConfig,
    process: int,
    activations: int,
    *,
    ranks: int,
    gpu: bool,
    frozen: int = 0,
) -> dict[str, int]:
    """Bytes at the peak by what takes them, without the parts that take nothing.

    Args:
        parameters: those that are trained.
        train: precision, optimiser and ZeRO stage.
        process: what the process has without the model.
        activations: peak bytes of what is kept for the backward pass, see `ava_core.config.activations`.
        ranks: processes over which ZeRO cuts its partitions.
        gpu: whether the model is in a GPU's memory.
        frozen: entries of the parameters that aren't trained: they take their weights and nothing else.

    The parts, for P parameters of w bytes, and F frozen ones:
        weights: w (P + F); at stage 3 a share of it.
        optimizer: float32 masters (4 P) of weights in half precision, or of ZeRO's partitions, and what the optimiser
            keeps (`ava_core.config.optimizers`); from stage 1 on a share of both.
        gradients: w P, or 4 P where they are accumulated over micro-batches; at stage 2 a share. Surgery holds those of
            the auxiliary losses apart, 4 P.
        communication: ZeRO's buckets, which take all gradients before they are exchanged.
        average: the exponential moving average of the weights, 4 P.
        checkpoint: of the CPU's memory what is written in the background, a copy of P's weights, optimizer and average.
        activations: these, or what the optimiser works in while there are none, whichever is more.
    """
    P, w, stage = sum(p.entries for p in parameters), WIDTHS[train.precision], train.zero_stage
    sharing = [1, *(ranks if stage >= first else 1 for first in (1, 2, 3))]
    masters = FLOAT32 * P if w < FLOAT32 or stage else 0
    entries = OPTIMIZERS[train.optimizer].state_entries
    state = FLOAT32 * sum(p.copies * entries(p.shape, p.is_hidden) for p in parameters)
    weights, optimizer = w * (P + frozen) // sharing[3], (masters + state) // sharing[1]
    gradients = (FLOAT32 if accumulates(train) else w) * P // sharing[2]
    average = FLOAT32 * P if train.ema.decay else 0
    parts = {
        "process": process,
        "weights": weights,
        "optimizer": optimizer,
        "gradients": gradients + (FLOAT32 * P if train.gradient_surgery else 0),
        "communication": w * P if stage else 0,
        "average": average,
        "checkpoint": 0 if gpu else w * P // sharing[3] + optimizer + average,
        "activations": max(activations, _workspace_bytes(parameters, train)),
    }
    return {name: size for name, size in parts.items() if size}


def accumulates(train: TrainConfig) -> bool:
    """Whether gradients are kept in float32: of several micro-batches, or under float16's loss scale."""
    return train.global_batch_size > train.micro_batch_size or train.precision == "fp16"


def _workspace_bytes(parameters: Sequence[Parameter], train: TrainConfig) -> int:
    """Temporaries of the optimiser's update.

    Muon holds the updates of all matrices of a step in float32 and orthogonalises those of one shape together; the
    stacks of experts take turns (`expert_update_interval`). The others but AdamW, which has kernels, widen gradients.
    """
    stacks: dict[tuple[int, ...], int] = {}
    others = 0
    for parameter in parameters:
        if train.optimizer == "muon" and parameter.is_hidden:
            turns = train.expert_update_interval if len(parameter.shape) > 2 else 1
            shape = parameter.shape[-2:]
            stacks[shape] = stacks.get(shape, 0) + -(-parameter.entries // turns)
        else:
            others += parameter.entries
    half = WIDTHS[train.precision] < FLOAT32
    widened = FLOAT32 * others if half and not accumulates(train) and train.optimizer != "adamw" else 0
    if not stacks:
        return widened
    return FLOAT32 * sum(stacks.values()) + MUON_WORKSPACE * max(stacks.values())
