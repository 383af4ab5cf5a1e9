"""A training that no machine like this one can hold is refused before its work, by the keys that make it large.

What is compared is the least that it takes: weights, gradients and the optimiser's state, which nothing makes smaller
but ZeRO and offloading, and of the activations half of one sequence's with every layer recomputed. What the plan of the
training itself says is more (`ava_core.training.memory.plan`), and never refused without a budget: an estimate can err.
"""

from __future__ import annotations

from pathlib import Path

from ava_core.config.estimate import Estimate, estimate, largest_part
from ava_core.config.hardware import GIB, Hardware
from ava_core.config.model import ModelConfig
from ava_core.config.precision import FLOAT32
from ava_core.config.schema import AvaConfig
from ava_core.config.train import TrainConfig
from ava_core.errors import ConfigError

MEMINFO = Path("/proc/meminfo")
PROCESS_BYTES = 100 * 2**20
"""Of the interpreter and PyTorch, apart from what processes share; really about twice as much."""


def require_memory(model: ModelConfig, train: TrainConfig, vocab_size: int, machine: Hardware) -> None:
    """Refuse a training that can't fit into this machine, on as many of its processes as run here.

    Raises:
        ConfigError: names the least that it takes, what the machine has, and the keys that make it large.
    """
    ranks = train.processes  # of all machines there may be more, which cut ZeRO's partitions further
    if train.hostfile is not None or train.launcher == "trainjob":
        return
    least = estimate(model, _smallest(train), vocab_size)
    gpu = machine.gpus > 0
    # A GPU's model is made in host memory, in float32.
    resident = ranks * (PROCESS_BYTES + (FLOAT32 * least.parameters if gpu else _resident_bytes(least, train)))
    if resident > (have := machine.memory_gib * GIB + _swap_bytes()):
        raise _refusal(model, train, vocab_size, resident, f"{have / GIB:.1f} GiB of memory", least)
    on_gpu = _resident_bytes(least, train)
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
    """The same training with as little at once as it can do with; results differ, but no parameter does."""
    return train.model_copy(update={"micro_batch_size": 1, "gradient_checkpointing": True, "memory_budget": None})


def _resident_bytes(least: Estimate, train: TrainConfig) -> int:
    """Of one process: partitions of what ZeRO cuts, and half of the activations, for native kernels keep less."""
    stage, ranks = train.zero_stage, train.processes
    return (
        least.weight_bytes // (ranks if stage >= 3 else 1)
        + least.gradient_bytes // (ranks if stage >= 2 else 1)
        + least.optimizer_bytes // (ranks if stage >= 1 else 1)
        + least.activation_bytes // 2
    )


def _refusal(
    model: ModelConfig, train: TrainConfig, vocab_size: int, needed: int, has: str, least: Estimate
) -> ConfigError:
    part, keys = largest_part(model, train, vocab_size, least)
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
