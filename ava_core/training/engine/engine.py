"""The DeepSpeed engine of a training run: forward and backward passes of a step, and its update."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ava_core.config.estimate import accumulates
from ava_core.config.train import TrainConfig
from ava_core.distributed.deepspeed_setup import exact_parameters, initialize
from ava_core.distributed.group import connect
from ava_core.distributed.ranks import Ranks
from ava_core.models.diagnosis import NonFiniteError
from ava_core.runtime.digests import digest_value
from ava_core.training.batch import Batch
from ava_core.training.engine.balance import BalanceMonitor, routing_figures
from ava_core.training.engine.compiled import CompiledLayers
from ava_core.training.engine.curvature import estimate_curvature
from ava_core.training.engine.zero_muon import PartitionedMuon
from ava_core.training.freezing import frozen_state, tell_rates
from ava_core.training.gradients.surgery import GradientSurgery
from ava_core.training.objective import Objective, ObjectiveLoss, TrainedModel
from ava_core.training.optimizers import Sophia, build_optimizer, exact_state_dict
from ava_core.training.precision import LossScaler, scale_exhausted, set_weight_dtype, weight_dtype
from ava_core.training.preconditions import refuse_impossible
from ava_core.training.speed.phases import marked


class TrainingEngine:
    """A model, what is minimised and the optimiser that does it, under DeepSpeed.

    A step is `accumulate`, then `update` or `discard`. Both are collective: all ranks make the same calls.

    Args:
        model: on the CPU, as the objective has prepared it; moved to the accelerator if there is one.
        config: the training section.
        ranks: this process among those that train; connected here if it wasn't.
        objective: gives the loss of each micro-batch.

    Attributes:
        optimizer: the one whose groups hold rates and decays; under ZeRO its parameters are flat partitions.
        groups: digest of the names of the parameters in each of the optimiser's groups.
        deepspeed: DeepSpeed's engine.

    Raises:
        ConfigError: this machine, or this number of ranks, can't train that.
    """

    def __init__(self, model: TrainedModel, config: TrainConfig, ranks: Ranks, objective: Objective[Any]) -> None:
        connect(ranks)
        refuse_impossible(config, ranks)
        self.config, self.ranks, self.objective = config, ranks, objective
        # Else the first rank with a nan would leave the others waiting in a collective; and a loss scaler needs them.
        # And what names the layer looks into layers, which compiled ones can't be.
        model.raise_non_finite = self._stops_at_non_finite and ranks.size == 1 and not config.compile
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if config.zero_stage == 0:
            set_weight_dtype(model, weight_dtype(config), accumulated=accumulates(config))
        partitioned = config.zero_stage > 0 and config.optimizer == "muon"
        self.optimizer: Optimizer = (
            PartitionedMuon.of(model, config)
            if partitioned
            else build_optimizer(model, config, masters=config.zero_stage == 0)
        )
        tell_rates(self.optimizer, config)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.groups = digest_value([[names[id(p)] for p in group["params"]] for group in self.optimizer.param_groups])
        self.deepspeed = initialize(model, self.optimizer, config, ranks)
        if isinstance(self.optimizer, PartitionedMuon):
            self.optimizer.find_partitions(self.deepspeed.optimizer)
        self.balance = BalanceMonitor()
        self.scaler = LossScaler() if config.precision == "fp16" and not config.zero_stage else None
        self.surgery = GradientSurgery(model) if config.gradient_surgery else None
        # DeepSpeed's hooks on the outputs allow no other backward pass than its own; at stage 0 they do nothing else.
        self._forward = self.model if self.surgery else self.deepspeed
        self._compiled = CompiledLayers(self.model, config) if config.compile else None
        self._steps = 0
        self._norm: Tensor | None = None
        self._passes: list[Batch] = []

    @property
    def model(self) -> TrainedModel:
        """The model itself."""
        return self.deepspeed.module

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.deepspeed.device

    def accumulate(self, batch: Batch) -> dict[str, float]:
        """Gradients of one step's batch, in micro-batches of equal numbers of tokens.

        The loss is the mean over all terms of the global batch: a micro-batch counts by how many it has of them.

        Returns:
            train_loss and the other parts of the loss, means over the terms; expert_load_cv and ffn_experts_per_token
            (means over layers), dead_experts (in all layers), means over micro-batches and ranks; collapsed_layers, by
            the loads of the whole batch; with surgery gradient_conflict, and in fp16 loss_scale.

        Raises:
            NonFiniteError: under guard.policy = stop, the loss is nan or infinite; it names the layer. Not in fp16,
                where a step that overflows is skipped.
            ValueError: the sequences aren't whole micro-batches, or no rank's batch has a term.
        """
        self.model.train()
        self.model.model.auxiliary_scale = 0.0  # an objective's loss contains what the routers add
        inputs = [micro.to(self.device) for micro in self._micro_batches(batch)]
        figures: dict[str, float] = {}
        fault: tuple[Batch, Tensor] | None = None
        for micro, divisor in zip(inputs, self._divisors(inputs), strict=True):
            with self._compiled.in_force() if self._compiled else nullcontext():
                output = self._pass(micro, divisor)
            self.balance.add(output.routing)
            for name, part in output.parts.items():
                figures[name] = figures.get(name, 0.0) + float(part) / divisor
            for name, part in routing_figures(output.routing).items():
                figures[name] = figures.get(name, 0.0) + float(part) / len(inputs)
            if fault is None and not math.isfinite(output.total.detach()):
                fault = (micro, output.total.detach())
        if self._stops_at_non_finite and self.ranks.any(fault is not None):
            raise self._non_finite(fault)
        with marked("communication"):
            if not self.config.zero_stage and self.ranks.size > 1:
                self.deepspeed.buffered_allreduce_fallback()
            figures = self.ranks.mean(figures) | self.balance.judge(self.ranks)
        if self.surgery:
            figures |= self.surgery.finish()
        if self.config.precision == "fp16":
            figures["loss_scale"] = float(self.scaler.scale if self.scaler else self.deepspeed.optimizer.loss_scale)
        self._passes = inputs if isinstance(self.optimizer, Sophia) else []
        return {"train_loss": figures.pop("train_loss"), **figures}

    def _pass(self, micro: Batch, divisor: float) -> ObjectiveLoss:
        """Forward and backward of a micro-batch."""
        with marked("forward"):
            output: ObjectiveLoss = self.objective.loss(self._forward, micro)
        loss = output.total / divisor
        scale = self.scaler.scale if self.scaler else 1.0
        with marked("backward"):
            if self.surgery:
                self.surgery.accumulate(output.auxiliary, scale / divisor)
            self.deepspeed.backward(loss * scale if self.scaler else loss, scale_wrt_gas=False)
        return output

    def gradient_norm(self) -> float | None:
        """The global norm of the accumulated gradient; None where only the update finds it.

        That is under ZeRO 1 to 3, and for a gradient that overflowed in fp16, which the update skips.
        """
        if self.config.zero_stage:
            return None
        norm = float(self._true_norm())
        return None if self.scaler and not math.isfinite(norm) else norm

    def update(self, max_norm: float) -> float:
        """Clip the gradient to `max_norm` (infinity: don't), make the optimiser's step, clear the gradient.

        Returns:
            The gradient's global norm before clipping; infinity if it overflowed and the step was skipped.
        """
        norm = self._update_partitions(max_norm) if self.config.zero_stage else self._update_whole(max_norm)
        if math.isfinite(norm):
            self.balance.finish_step(self.model)
        else:  # the weights were left alone, and so are the routers' biases
            self.balance.discard()
        self._end_step()
        return norm

    def discard(self) -> None:
        """Drop the accumulated gradient and the loads of its batch."""
        if self.config.zero_stage:
            self._discard_partitions()
        else:
            if self.scaler and not math.isfinite(self._true_norm()):
                self.scaler.update(overflowed=True)
            self._clear_gradients()
        self.balance.discard()
        self._end_step()

    @torch.no_grad()
    def exact_state_dict(self) -> dict[str, Tensor]:
        """The model's state in float32, on every rank: the masters of weights that training rounds. Tied weights are
        one tensor. At stage 0 these are the masters themselves, no copies. Frozen parameters aren't among it: training
        has only what it computes with, in half precision their rounded values."""
        frozen = frozen_state(self.model)
        if not self.config.zero_stage:
            exact = exact_state_dict(self.model, self.optimizer)
            return {name: value.float() for name, value in exact.items() if name not in frozen}
        exact = dict(exact_parameters(self.model))
        # Under ZeRO 3 its parameters are empty; buffers are never cut.
        names = [name for name in self.model.state_dict() if name not in frozen]
        buffers = dict(self.model.named_buffers())
        return {name: exact[name] if name in exact else buffers[name].float() for name in names}

    def weights(self) -> dict[str, Tensor]:
        """As `exact_state_dict`: what an average of the weights takes in."""
        return self.exact_state_dict()

    def state_dict(self) -> dict[str, Any]:
        """What DeepSpeed's own files don't hold."""
        return {"steps": self._steps, "scaler": self.scaler.state_dict() if self.scaler else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the loss scale of another precision or stage is ignored."""
        self._steps = state["steps"]
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    @property
    def _stops_at_non_finite(self) -> bool:
        return self.config.guard.policy == "stop" and self.config.precision != "fp16"

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        length = batch.input_ids.shape[1]
        size = self.config.micro_batch_size * self.config.sequence_length // length
        # A shorter length may be no part of the context: then as many as divide the batch.
        return batch.split_within(size) if length < self.config.sequence_length else batch.split(size)

    def _divisors(self, inputs: list[Batch]) -> list[float]:
        """What the mean loss of each micro-batch is divided by: the number of them, where all have equally many terms.

        The gradients are averaged over the ranks, so it is the mean rank's terms that each is a share of.
        """
        counts = [self.objective.count(micro) for micro in inputs]
        terms = self.ranks.mean({"terms": float(sum(counts))})["terms"]
        if not terms:
            raise ValueError("batch in which nothing is to be learnt: no position has a label")
        return [terms / count if count else math.inf for count in counts]

    def _non_finite(self, fault: tuple[Batch, Tensor] | None) -> NonFiniteError:
        if fault is None:
            return NonFiniteError("loss is no finite number: on another rank, which names the layer")
        micro, loss = fault
        return NonFiniteError.of(self.model, loss, **micro.model_inputs)

    def _true_norm(self) -> Tensor:
        """Computed once for each gradient, as DeepSpeed does it where it clips whole gradients."""
        if self._norm is None:
            norms = [p.grad.float().norm(2) for p in self.model.parameters() if p.grad is not None]
            self._norm = torch.stack(norms).pow(2.0).sum().pow(0.5)
            if self.scaler:
                self._norm = self._norm / self.scaler.scale
        return self._norm

    @torch.no_grad()
    def _update_whole(self, max_norm: float) -> float:
        norm = self._true_norm()
        factor = min(1.0, float(max_norm / (norm + 1e-6)))
        if self.scaler:
            overflowed = not math.isfinite(norm)
            factor = factor / self.scaler.scale
            self.scaler.update(overflowed)
            if overflowed:
                self._clear_gradients()
                return math.inf
        if factor != 1.0:  # a nan too
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        if isinstance(self.optimizer, Sophia) and self.optimizer.due(self._steps):
            estimate_curvature(self.optimizer, self.model, self._passes, self._steps, self.ranks)
        self.deepspeed.step()
        return float(norm)

    def _update_partitions(self, max_norm: float) -> float:
        zero = self.deepspeed.optimizer
        zero.clip_grad = max_norm if math.isfinite(max_norm) else 0.0
        try:
            self.deepspeed.step()
        except Exception as error:  # DeepSpeed raises nothing more precise
            if "loss scale already at minimum" in str(error):
                raise scale_exhausted(float(zero.loss_scale)) from error
            raise
        return float(self.deepspeed.get_global_grad_norm())

    def _discard_partitions(self) -> None:
        """A step of DeepSpeed's without the optimiser's part: weights stay, gradients and counters are cleared."""
        base = self.deepspeed.optimizer.optimizer
        base.step = lambda *_, **__: None
        try:
            self.deepspeed.step()
        finally:
            del base.step

    def _clear_gradients(self) -> None:
        self.deepspeed.zero_grad()
        self.deepspeed._unmanaged_backward_count = 0

    def _end_step(self) -> None:
        self._norm, self._passes = None, []
        self._steps += 1
