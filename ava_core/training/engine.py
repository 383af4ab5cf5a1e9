"""The DeepSpeed engine of a training run: process group, configuration, one optimiser step."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import torch
from torch import Tensor, nn

from ava_core.config.training import TrainConfig
from ava_core.losses import UnifiedLoss
from ava_core.models import EnhancedMoEForCausalLM, RoutingStatistics
from ava_core.models.diagnosis import NonFiniteError
from ava_core.training.balance import BalanceMonitor
from ava_core.training.optimizers import build_optimizer, exact_state_dict
from ava_core.training.schedules import build_schedule, build_scheduler

WEIGHT_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""Type of weights, activations and products by `train.precision`; the optimiser keeps float32 masters (see there)."""


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """The configuration that DeepSpeed gets: it trains the weights as they are.

    Not DeepSpeed's own `bf16`: its optimiser flattens all parameters into one vector, and Muon needs matrices.
    """
    return {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.global_batch_size // config.micro_batch_size,
        "gradient_clipping": config.gradient_clip,
        "zero_optimization": {"stage": 0},
        "steps_per_print": 2**31,
    }


def set_weight_dtype(model: nn.Module, dtype: torch.dtype, *, accumulated: bool) -> None:
    """Cast the parameters, not the buffers; gradients that are `accumulated` over micro-batches stay in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
        if accumulated:
            parameter.grad_dtype = torch.float32


class TrainingEngine:
    """A model, its optimiser and its schedule under DeepSpeed.

    Args:
        model: on the CPU; moved to the accelerator if there is one.
        config: the training section.
    """

    def __init__(self, model: EnhancedMoEForCausalLM, config: TrainConfig) -> None:
        deepspeed = _import_deepspeed()
        _init_single_process(deepspeed)
        weights = model.loss_function.auxiliary_weights
        model.loss_function = UnifiedLoss.standard(
            label_smoothing=config.loss.label_smoothing,
            logit_z_loss_weight=config.loss.z_loss_weight,
            balance_loss_weight=weights["balance_loss"],
            router_z_loss_weight=weights["router_z_loss"],
        )
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        dtype, accumulated = WEIGHT_DTYPES[config.precision], config.global_batch_size > config.micro_batch_size
        set_weight_dtype(model, dtype, accumulated=accumulated)
        optimizer = self.optimizer = build_optimizer(
            model,
            config.optimizer,
            config.learning_rate,
            config.weight_decay,
            betas=(config.adam_beta1, config.adam_beta2),
            momentum=config.momentum,
            embedding_learning_rate=config.adam_learning_rate,
        )
        schedule = build_schedule(config.schedule, config.steps, config.warmup_steps, config.final_learning_rate_ratio)
        self.config = config
        self.balance = BalanceMonitor()
        self.deepspeed, _, _, self.scheduler = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            lr_scheduler=build_scheduler(optimizer, schedule),
            config=deepspeed_config(config),
            dist_init_required=False,
        )

    @property
    def model(self) -> EnhancedMoEForCausalLM:
        """The model itself."""
        return self.deepspeed.module

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.deepspeed.device

    def exact_state_dict(self) -> dict[str, Tensor]:
        """The model's state in float32: the masters of weights that training rounds."""
        return {name: value.float() for name, value in exact_state_dict(self.model, self.optimizer).items()}

    def step(self, windows: Tensor, document_ids: Tensor | None) -> dict[str, float]:
        """One optimiser step on (B, S + 1) tokens; `document_ids` (B, S), or None if no window holds a boundary.

        Returns:
            train_loss (nats per token), the other parts of the loss, gradient_norm (before clipping), learning_rate,
            expert_load_cv and ffn_experts_per_token (means over layers), dead_experts (in all layers); each a mean over
            micro-batches; and collapsed_layers, by the loads of the whole step.

        Raises:
            NonFiniteError: the loss is nan or infinite; it names the layer.
        """
        self.model.train()
        size = self.config.micro_batch_size
        figures: dict[str, float] = {"learning_rate": float(self.scheduler.get_last_lr()[0])}
        passes = windows.shape[0] // size
        for start in range(0, windows.shape[0], size):
            micro = windows[start : start + size].to(self.device)
            ids = None if document_ids is None else document_ids[start : start + size].to(self.device)
            inputs = {"input_ids": micro[:, :-1], "shift_labels": micro[:, 1:], "document_ids": ids}
            output = self.deepspeed(**inputs, return_logits=False)
            self.deepspeed.backward(output.loss)
            self.balance.add(output.router_statistics)
            for name, part in {**output.loss_parts, **_routing_figures(output.router_statistics)}.items():
                figures[name] = figures.get(name, 0.0) + float(part) / passes
            if not math.isfinite(output.loss.detach()):  # before the optimiser spreads it over all weights
                raise NonFiniteError.of(self.model, output.loss, **inputs)
            if start + size == windows.shape[0]:
                grads = [p.grad for p in self.model.parameters() if p.grad is not None]
                figures["gradient_norm"] = float(torch.nn.utils.get_total_norm(grads))
            self.deepspeed.step()
        figures |= self.balance.finish_step(self.model)
        return {"train_loss": figures.pop("cross_entropy"), **figures}


def _routing_figures(layers: tuple[RoutingStatistics, ...]) -> dict[str, Tensor]:
    return {
        "ffn_experts_per_token": torch.stack([layer.ffn_experts_per_token for layer in layers]).mean(),
        "expert_load_cv": torch.stack([layer.load_cv for layer in layers]).mean(),
        "dead_experts": torch.stack([layer.dead_experts for layer in layers]).sum(),
    }


def _import_deepspeed():
    """DeepSpeed without its own log lines, on the CPU where there is no GPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def _init_single_process(deepspeed) -> None:
    """A process group of this process alone, with an in-memory store: no port is opened."""
    from torch import distributed

    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        os.environ[name] = value
    if not distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    # One process has nobody to share memory with, and compiling the operation would take half a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
