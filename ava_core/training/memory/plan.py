"""How much memory a training will take, and which layers recompute so that it stays within a budget.

What a layer keeps for its backward pass is measured, for it depends on the kernels at hand (the native ones keep less
than half of what PyTorch's own operations keep); everything else follows from the parameters. Nothing of it changes a
result: recomputation repeats the same operations with the same noise and routes.
"""

from __future__ import annotations

import contextlib
import logging
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from ava_core import kernels
from ava_core.config.estimate import LOGITS_CHUNK
from ava_core.config.hardware import GIB
from ava_core.config.precision import FLOAT32, WIDTHS
from ava_core.config.train import TrainConfig
from ava_core.distributed.ranks import Ranks
from ava_core.errors import ConfigError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.training.engine.precision import weight_dtype
from ava_core.training.memory.out_of_memory import free_memory
from ava_core.training.optimizers.parameters import is_hidden_matrix
from ava_core.training.process import peak_memory_bytes

log = logging.getLogger(__name__)
SAMPLE_TOKENS = 2048
"""Tokens of the pass that is measured, at least: in whole sequences, and no more than a micro-batch has."""
MUON_WORKSPACE = 12
"""Bytes per entry of the largest stack of equal matrices: it in float32 before and after, and the iteration's own."""


@dataclass(frozen=True, kw_only=True)
class LayerMemory:
    """What layers keep of one micro-batch for the backward pass, in bytes.

    Attributes:
        saved: of each layer, if it isn't recomputed.
        kept: of each layer, if it is: its input, the logits of the gate before, and its routes.
        outside: what the embedding, the last norm and the loss keep.
        largest: the largest tensor among those of each layer. Long sequences have attention probabilities of
            sequence x sequence; the backward pass of their softmax holds two gradients of that size at once.
    """

    saved: tuple[int, ...]
    kept: tuple[int, ...]
    outside: int
    largest: tuple[int, ...] = ()

    def peak(self, recomputed: int, head: int) -> int:
        """The most that exists at once if the first `recomputed` layers recompute.

        Either at the head's loss, or in the backward pass of some layer: what it and those before it keep, what it
        recomputes, and gradients inside it: about as many as what it saves, and that of the largest tensor twice.
        """
        held = [
            kept if i < recomputed else saved for i, (kept, saved) in enumerate(zip(self.kept, self.saved, strict=True))
        ]
        largest = self.largest or (0,) * len(self.saved)
        inside = [(2 if i < recomputed else 1) * saved + largest[i] for i, saved in enumerate(self.saved)]
        backward = max(sum(held[: i + 1]) + inside[i] for i in range(len(held)))
        return self.outside + max(sum(held) + head, backward)


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


def recompute(model: EnhancedMoEForCausalLM, layers: tuple[int, ...]) -> None:
    """Let exactly these decoder layers recompute their activations in the backward pass."""
    function = partial(checkpoint, use_reentrant=False)
    for i, layer in enumerate(model.model.layers):
        layer.gradient_checkpointing = i in layers
        layer._gradient_checkpointing_func = function  # as Transformers' gradient_checkpointing_enable sets it
    model.model.gradient_checkpointing = bool(layers)  # the model's own flag turns its cache off


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
    fixed = _fixed_parts(model, config, ranks.size)
    head, workspace = _head_bytes(model, config), _workspace_bytes(model, config, ranks.size)
    count = len(layers.saved)

    def planned(recomputed: int) -> MemoryPlan:
        temporary = max(layers.peak(recomputed, head), workspace)
        return MemoryPlan(layers_recomputed=tuple(range(recomputed)), parts={**fixed, "activations": temporary})

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


def measure(model: EnhancedMoEForCausalLM, config: TrainConfig) -> LayerMemory:
    """Run one forward pass as training runs it, and count what autograd keeps; nothing of it is held.

    Of some whole sequences of random tokens, in proportion for the micro-batch; what a layer's experts keep depends on
    the routing, which is that of the present weights. Leaves weights, modes and random state as they were.
    """
    length = config.sequence_length
    rows = min(config.micro_batch_size, -(-SAMPLE_TOKENS // length))
    scale = config.micro_batch_size / rows
    device = next(model.parameters()).device
    counts = _Counts(model)
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        _as_trained(model, weight_dtype(config)),
    ):
        torch.manual_seed(0)
        tokens = torch.randint(model.config.vocab_size, (rows, length)).to(device)
        counts.run(tokens)
    return LayerMemory(
        saved=tuple(round(scale * size) for size in counts.saved),
        kept=tuple(round(scale * size) for size in counts.kept),
        outside=round(scale * counts.outside) + _loss_bytes(model, config),
        largest=tuple(round(scale * size) for size in counts.largest),
    )


class _Counts:
    """Sizes of what autograd keeps in a forward pass, by layer; each storage once, in the first that keeps it."""

    def __init__(self, model: EnhancedMoEForCausalLM) -> None:
        self._model = model
        self.saved = [0] * len(model.model.layers)
        self.kept = [0] * len(model.model.layers)
        self.largest = [0] * len(model.model.layers)
        self.outside = 0
        self._layer: int | None = None
        # Weak references free the tensors and keep the storages' identities, which tell them apart.
        self._seen: dict[int, StorageWeakRef] = {}

    def run(self, tokens: Tensor) -> None:
        """Count a pass over tokens (B, S), without the head and its loss, which differentiate inside their forward."""
        for parameter in self._model.parameters():
            self._is_new(parameter)
        handles = []
        for i, layer in enumerate(self._model.model.layers):
            handles.append(layer.register_forward_pre_hook(partial(self._enter, i)))
            handles.append(layer.register_forward_hook(self._leave))
        try:
            hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda _: None)  # type: ignore[arg-type, return-value]
            with torch.enable_grad(), hooks:
                self._model.model(input_ids=tokens, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, tensor: Tensor) -> None:
        if not self._is_new(tensor):
            return
        size = tensor.untyped_storage().nbytes()
        if self._layer is not None:
            self.saved[self._layer] += size
            self.largest[self._layer] = max(self.largest[self._layer], size)
        else:
            self.outside += size

    def _is_new(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return False
        self._seen[storage._cdata] = StorageWeakRef(storage)
        return True

    def _enter(self, i: int, _layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._layer = i
        x_BSD, gate_logits = arguments[:2]
        self.kept[i] = x_BSD.nbytes + (gate_logits.nbytes if isinstance(gate_logits, Tensor) else 0)

    def _leave(self, _layer: nn.Module, arguments: tuple[Any, ...], _output: Any) -> None:
        i, self._layer = self._layer, None
        tape = next((argument for argument in arguments if hasattr(argument, "routes")), None)
        if i is not None and tape is not None and tape.routes is not None:
            routes = tape.routes
            self.kept[i] += sum(t.nbytes for t in (routes.expert_ids_TK, routes.used_TK, routes.selected_TK))


@contextlib.contextmanager
def _as_trained(model: EnhancedMoEForCausalLM, dtype: torch.dtype) -> Iterator[None]:
    """Weights in `dtype`, training mode, no layer recomputing; all as before afterwards."""
    weights = [(parameter, parameter.data) for parameter in model.parameters()]
    training = {module: module.training for module in model.modules()}
    recomputing = tuple(i for i, layer in enumerate(model.model.layers) if layer.gradient_checkpointing)
    try:
        for parameter, data in weights:
            parameter.data = data.to(dtype)
        model.train()
        recompute(model, ())
        yield
    finally:
        for parameter, data in weights:
            parameter.data = data
        for module, mode in training.items():
            module.training = mode
        recompute(model, recomputing)


def _present_bytes() -> int:
    """What the process takes now, in the same sense as `process.peak_memory_bytes`."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux
        return peak_memory_bytes()


def _fixed_parts(model: nn.Module, config: TrainConfig, ranks: int) -> dict[str, int]:
    """What is there throughout: the process as it is, and what weights, gradients and optimiser will add to it."""
    stage = config.zero_stage
    parameters = [p for p in model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in parameters)
    width = WIDTHS[config.precision]
    weights = width * count // (ranks if stage >= 3 else 1)
    masters = FLOAT32 * count if width < FLOAT32 else 0
    state = (masters + FLOAT32 * _state_entries(model, config)) // (ranks if stage >= 1 else 1)
    accumulated = config.global_batch_size > config.micro_batch_size * ranks
    gradients = (FLOAT32 if accumulated else width) * count // (ranks if stage >= 2 else 1)
    average = FLOAT32 * count if config.ema.decay else 0
    surgery = FLOAT32 * count if config.gradient_surgery else 0
    held = sum(p.nbytes for p in model.parameters())  # their memory is used again by what replaces them
    present = _present_bytes()
    parts = {
        "process": max(present - held, 0),
        "weights": weights,
        "optimizer": state,
        "gradients": gradients + surgery,
        "average": average,
    }
    if not torch.cuda.is_available():  # written in the background from a copy
        parts["checkpoint"] = weights + state + average
    return {name: size for name, size in parts.items() if size}


def _state_entries(model: nn.Module, config: TrainConfig) -> int:
    """Entries of float32 state that the optimiser keeps beside the masters."""
    entries = 0
    for name, parameter in model.named_parameters():
        shape, count = parameter.shape, parameter.numel()
        match config.optimizer:
            case "adafactor":  # a mean per row and one per column of matrices
                entries += prod(shape[:-1]) + prod(shape[:-2]) * shape[-1] if len(shape) > 1 else count
            case "lion":
                entries += count
            case "muon":
                entries += count if is_hidden_matrix(name, parameter) else 2 * count
            case _:
                entries += 2 * count
    return entries


def _loss_bytes(model: EnhancedMoEForCausalLM, config: TrainConfig) -> int:
    """What the losses of the head and of each prediction head keep: their gradients, taken in the forward pass."""
    prediction_heads = getattr(model, "prediction_heads", None)
    extra = len(prediction_heads.heads) if prediction_heads is not None else 0
    tokens, width = config.micro_batch_size * config.sequence_length, WIDTHS[config.precision]
    hidden = tokens * model.config.hidden_size * width
    # A prediction head keeps its product and that one's SiLU beside the gradient; the trunk's output is one for all.
    return (1 + extra) * (hidden + FLOAT32 * model.lm_head.weight.numel()) + 2 * extra * hidden


def _head_bytes(model: EnhancedMoEForCausalLM, config: TrainConfig) -> int:
    """Temporaries of the head's loss on one chunk: logits, their gradient and what lies between, and the products'."""
    tokens = min(config.micro_batch_size * config.sequence_length, LOGITS_CHUNK)
    weight = model.lm_head.weight
    native = config.precision == "bf16" and weight.device.type == "cpu" and kernels.library.library() is not None
    per_logit = 2 * FLOAT32 if native else 4 * FLOAT32
    return tokens * weight.shape[0] * per_logit + FLOAT32 * weight.numel()


def _workspace_bytes(model: nn.Module, config: TrainConfig, ranks: int) -> int:
    """Temporaries of the optimiser's update, when the activations are free."""
    half = WIDTHS[config.precision] < FLOAT32
    stacks: dict[tuple[int, ...], int] = {}
    others = 0
    for name, parameter in model.named_parameters():
        if config.optimizer == "muon" and is_hidden_matrix(name, parameter):
            key = tuple(parameter.shape[-2:])
            stacks[key] = stacks.get(key, 0) + parameter.numel()
        else:
            others += parameter.numel()
    accumulated = config.global_batch_size > config.micro_batch_size * ranks
    widened = FLOAT32 * others if half and not accumulated and config.optimizer != "adamw" else 0
    if not stacks:
        return widened
    return FLOAT32 * sum(stacks.values()) + MUON_WORKSPACE * max(stacks.values())
