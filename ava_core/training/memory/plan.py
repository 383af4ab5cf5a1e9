"""How much memory a training will take, and which layers recompute so that it stays within a budget.

What a layer keeps for its backward pass and what the process has are measured; everything else is the arithmetic of
`ava_core.config.estimate`. Nothing of it changes a result: recomputation repeats the same operations with the same
noise and routes.
"""

from __future__ import annotations

import logging
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from ava_core import kernels
from ava_core.config.activations import head_bytes
from ava_core.config.estimate import memory_parts, process_bytes
from ava_core.config.hardware import GIB
from ava_core.config.parameters import Parameter
from ava_core.config.train import TrainConfig
from ava_core.distributed.ranks import Ranks
from ava_core.errors import ConfigError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.training.memory.measure import measure, recompute
from ava_core.training.memory.out_of_memory import free_memory
from ava_core.training.process import peak_memory_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Attributes:
    layers_recomputed: numbers of the layers that recompute their activations, from 0.
    parts: bytes by what takes them; their sum is the estimate.
    """

    layers_recomputed: tuple[int, ...]
    parts: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """What the process will take at its peak: resident on a CPU, allocated on a GPU."""
        return sum(self.parts.values())

    def apply(self, model: EnhancedMoEForCausalLM) -> None:
        """Set which layers recompute, and no others; tell the estimate in one log line."""
        recompute(model, self.layers_recomputed)
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in self.parts.items())
        chosen = f"; {len(self.layers_recomputed)} of {len(model.model.layers)} layers recompute"
        log.info("memory: about %.2f GiB (%s)%s", self.total_bytes / GIB, parts, chosen)

    def compare(self, peak_bytes: int) -> None:
        """Log the estimate against the real peak."""
        log.info("memory: %.2f GiB at the peak, %.2f estimated", peak_bytes / GIB, self.total_bytes / GIB)


def plan_memory(model: EnhancedMoEForCausalLM, config: TrainConfig, ranks: Ranks | None = None) -> MemoryPlan:
    """Choose the fewest layers that recompute so that `train.memory_budget` holds; all or none without a budget.

    The first layers are taken: when their backward pass comes, what the others kept is free already.

    Args:
        model: with the loss and heads that it trains with, before the engine is built: its weights still float32. On a
            GPU it is moved there, as the engine would.
        config: the training section.
        ranks: those that train together; the first one's plan holds for all.

    Raises:
        ConfigError: even with all layers recomputed the training needs more than the budget.
    """
    ranks = ranks or Ranks()
    if torch.cuda.is_available() and config.zero_stage < 3:
        model.to(torch.device("cuda", ranks.local_rank))  # type: ignore[arg-type]
    layers = measure(model, config)
    free_memory()  # what the measured pass left in the allocator would count twice
    trained = [Parameter(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    gpu = torch.cuda.is_available()
    path = "gpu" if gpu else kernels.library.path()
    held = sum(p.nbytes for p in model.parameters())  # their memory is used again by what replaces them
    process = process_bytes(config, path, max(0, _present_bytes() - held))
    vocab_size, width = model.config.vocab_size, model.config.hidden_size
    head = head_bytes(config, width, vocab_size, path)
    count = len(layers.saved)

    def planned(recomputed: int) -> MemoryPlan:
        activations = layers.peak(recomputed, head)
        parts = memory_parts(trained, config, process, activations, ranks=ranks.size, gpu=gpu, frozen=frozen)
        return MemoryPlan(layers_recomputed=tuple(range(recomputed)), parts=parts)

    if config.memory_budget is None:
        return ranks.broadcast_object(planned(count if config.gradient_checkpointing else 0))
    budget = config.memory_budget * GIB
    plans = [planned(recomputed) for recomputed in range(count + 1)]
    plan = next((plan for plan in plans if plan.total_bytes <= budget), None)
    plan = ranks.broadcast_object(plan)
    if plan is None:
        least = min(plans, key=lambda plan: plan.total_bytes)
        raise ConfigError(
            f"train.memory_budget = {config.memory_budget:g} GiB: training takes about"
            f" {least.total_bytes / GIB:.2f} GiB even if all {count} layers recompute: raise it, or lower"
            f" train.micro_batch_size (now {config.micro_batch_size}) or"
            f" train.sequence_length (now {config.sequence_length})"
        )
    return plan


def _present_bytes() -> int:
    """What the process takes now, in the same sense as `process.peak_memory_bytes`."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux
        return peak_memory_bytes()
