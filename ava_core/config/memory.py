"""Refuses, before any work, a training that can't fit into this machine's memory; names the keys that make it large.

What is compared is the least that it takes: weights, gradients and the optimiser's state, which nothing makes smaller
but ZeRO and offloading, and of the activations half of one sequence's with every layer recomputed. What the plan of the
training itself says is more (`ava_core.training.memory.plan`), and never refused without a budget: an estimate can err.
"""

from __future__ import annotations

from pathlib import Path

from ava_core.config.estimate import Estimate, estimate
from ava_core.config.hardware import GIB, Hardware, kernels_path
from ava_core.config.model import ModelConfig
from ava_core.config.parameters import parameters_of
from ava_core.config.precision import FLOAT32
from ava_core.config.schema import AvaConfig
from ava_core.config.train import TrainConfig
from ava_core.errors import ConfigError

MEMINFO = Path("/proc/meminfo")
PROCESS_BYTES = 100 * 2**20
"""At least, of the interpreter and PyTorch, apart from what processes share."""


def require_memory(model: ModelConfig, train: TrainConfig, vocab_size: int, machine: Hardware) -> None:
    """Refuse a training that can't fit into this machine, on as many of its processes as run here.

    Raises:
        ConfigError: names the least that it takes, what the machine has, and the keys that make it large.
    """
    ranks = train.processes  # of all machines there may be more, which cut ZeRO's partitions further
    if train.hostfile is not None or train.launcher == "trainjob":
        return
    gpu = machine.gpus > 0
    least = estimate(model, _smallest(train), vocab_size, "gpu" if gpu else kernels_path())
    # A GPU's model is made in host memory, in float32.
    resident = ranks * (PROCESS_BYTES + (FLOAT32 * least.parameters if gpu else _resident_bytes(least)))
    if resident > (have := machine.memory_gib * GIB + _swap_bytes()):
        raise _refusal(model, train, vocab_size, resident, f"{have / GIB:.1f} GiB of memory", least)
    on_gpu = _resident_bytes(least)
    if gpu and train.offload == "none" and on_gpu > (have := machine.gpu_memory_gib * GIB):
        raise _refusal(model, train, vocab_size, on_gpu, f"{have / GIB:.1f} GiB on its smallest GPU", least)


def require_training_memory(config: AvaConfig, machine: Hardware) -> None:
    """The same for a whole configuration, before there is a tokenizer.

    On a machine with GPUs only training itself knows whether it may use them.

    Raises:
        ConfigError: as `require_memory`.
    """
    if not machine.gpus:
        require_memory(config.model, config.train, config.tokenizer.vocab_size, machine)


def _smallest(train: TrainConfig) -> TrainConfig:
    """The same training with the least activations: one sequence per micro-batch, every layer recomputed. Results
    differ, but no parameter does.
    """
    return train.model_copy(update={"micro_batch_size": 1, "gradient_checkpointing": True, "memory_budget": None})


def _resident_bytes(least: Estimate) -> int:
    """Of one process: what is there throughout, and half of the activations."""
    throughout = sum(least.parts.get(name, 0) for name in ("weights", "gradients", "optimizer", "average"))
    return throughout + least.parts["activations"] // 2


def _largest_part(model: ModelConfig, train: TrainConfig, vocab_size: int, least: Estimate) -> tuple[str, list[str]]:
    """What takes most of a training's memory, and the keys that decide how much, as `key = value`."""

    def keys(*names: str) -> list[str]:
        return [f"model.{name} = {getattr(model, name)}" for name in names]

    kinds = ("num_ffn_experts", "num_zero_experts", "num_copy_experts", "num_constant_experts", "num_expert_groups")
    most = max(kinds, key=lambda kind: getattr(model, kind))
    parts = {
        "the embedding": (("embed_tokens", "lm_head"), [f"tokenizer.vocab_size = {vocab_size}", *keys("hidden_size")]),
        "the experts": (
            (".experts.", ".shared_experts."),
            keys("num_ffn_experts", "expert_intermediate_size", "num_layers", "hidden_size"),
        ),
        "attention": (("_proj.weight",), keys("num_attention_heads", "num_layers", "hidden_size")),
        "the routers": (("moe.gate.", "zero_computation"), keys(most, "num_layers", "hidden_size")),
    }
    sizes = dict.fromkeys(parts, 0)
    for parameter in parameters_of(model, vocab_size):
        for name, (words, _) in parts.items():
            if any(word in parameter.name for word in words):
                sizes[name] += parameter.entries
                break
    name = max(sizes, key=lambda part: sizes[part])
    if least.parts["activations"] > _resident_bytes(least):
        return "what one sequence needs for the backward pass", [
            f"train.sequence_length = {train.sequence_length}",
            *parts[name][1],
        ]
    return name, parts[name][1]


def _refusal(
    model: ModelConfig, train: TrainConfig, vocab_size: int, needed: int, has: str, least: Estimate
) -> ConfigError:
    part, keys = _largest_part(model, train, vocab_size, least)
    processes = f" in {train.processes} processes" if train.processes > 1 else ""
    return ConfigError(
        f"train: {least.parameters:,} parameters take at least {needed / GIB:,.1f} GiB{processes}, and this machine has"
        f" {has}: most of it is {part}: lower {', '.join(keys)}"
        + (" or train.processes" if train.processes > 1 else "")
    )


def _swap_bytes() -> int:
    """Swap of the machine: slow, but a training that fits with it isn't refused."""
    try:
        lines = MEMINFO.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("SwapTotal:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0
