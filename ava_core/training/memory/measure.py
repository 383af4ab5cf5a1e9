"""What a model's layers really keep for their backward pass, counted in one forward pass.

It depends on the machine's kernels: the native ones keep less than half of what PyTorch's own operations keep.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from ava_core.config.activations import LayerMemory, loss_bytes
from ava_core.config.train import TrainConfig
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.training.objective import TrainedModel
from ava_core.training.precision import weight_dtype

SAMPLE_TOKENS = 2048
"""Tokens of the pass that is measured, at least: in whole sequences, and no more than a micro-batch has."""


def recompute(model: TrainedModel, layers: tuple[int, ...]) -> None:
    """Let exactly these decoder layers recompute their activations in the backward pass."""
    function = partial(checkpoint, use_reentrant=False)
    for i, layer in enumerate(model.model.layers):
        layer.gradient_checkpointing = i in layers
        layer._gradient_checkpointing_func = function  # as Transformers' gradient_checkpointing_enable sets it
    model.model.gradient_checkpointing = bool(layers)  # the model's own flag turns its cache off


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


def _loss_bytes(model: EnhancedMoEForCausalLM, config: TrainConfig) -> int:
    prediction_heads = getattr(model, "prediction_heads", None)
    extra = len(prediction_heads.heads) if prediction_heads is not None else 0
    return loss_bytes(config, model.config.hidden_size, model.config.vocab_size, extra)
