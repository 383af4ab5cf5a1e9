"""The decoder, as a Transformers model. Shapes: see `shapes`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import can_return_tuple

from ava_core.models.attention import Attention
from ava_core.models.auxiliary import AuxiliaryGradient, adopt_trainer
from ava_core.models.configuration import EXPERTS_IMPLEMENTATIONS, EnhancedMoEConfig
from ava_core.models.context import warn_beyond
from ava_core.models.experts import FFNExperts
from ava_core.models.masks import layer_masks
from ava_core.models.moe import Gate, MoELayer, ZeroComputationExperts
from ava_core.models.normalization import RMSNorm
from ava_core.models.outputs import EnhancedMoEModelOutput
from ava_core.models.rope import RotaryEmbedding
from ava_core.models.routing import BiasSteps, ExpertBiasRouter, Routes, RouteTape, RoutingStatistics

CACHE_LINE = 64
"""Bytes; PyTorch's CPU allocator aligns to it."""


class DecoderLayer(GradientCheckpointingLayer):
    """Pre-norm attention and MoE++ blocks with residual connections.

    Everything that the model needs from the routing is returned, never stored on the module, so the recomputation of
    gradient checkpointing can't count anything twice; and it finds its routes on the tape, so it can't choose others.
    """

    def __init__(self, config: EnhancedMoEConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.moe = MoELayer(config, layer_idx)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BSD: Tensor,
        previous_logits_TE: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        token_mask_T: Tensor | None = None,
        past_key_values: Cache | None = None,
        tape: RouteTape | None = None,
        output_choices: bool = False,
        gradient: AuxiliaryGradient | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, RoutingStatistics, Tensor | None, Tensor | None]:
        """Return hidden states, the gate's logits (T, num_logits), balance, z- and diversity loss, and statistics.

        With `output_choices` the logits and the choices of the experts, both (T, E), come last, else None. A flat
        tuple, because reentrant checkpointing follows gradients through nothing else.
        """
        attended = self.self_attn(self.input_layernorm(x_BSD), rotary, mask, past_key_values)
        x_BSD = x_BSD + self.dropout(attended)
        normalised = self.post_attention_layernorm(x_BSD)
        mixed, gate_logits, routing = self.moe(normalised, previous_logits_TE, token_mask_T, tape, gradient)
        x_BSD = x_BSD + self.dropout(mixed)
        logits_TE, choices_TE = None, None
        if output_choices:
            logits_TE = routing.logits_TE
            choices_TE = torch.zeros_like(logits_TE, dtype=torch.bool)
            choices_TE = choices_TE.scatter(1, routing.expert_ids_TK, routing.used_TK)
        losses = routing.balance_loss, routing.z_loss, routing.diversity_loss
        return x_BSD, gate_logits, *losses, routing.statistics, logits_TE, choices_TE


class EnhancedMoEPreTrainedModel(PreTrainedModel):
    """Initialisation and loading, common to all models with this decoder."""

    config: EnhancedMoEConfig
    config_class = EnhancedMoEConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, FFNExperts):
            nn.init.normal_(module.gate_up_proj, std=std)
            nn.init.normal_(module.down_proj, std=std)
        elif isinstance(module, Gate):
            nn.init.normal_(module.weight, std=std)
            if module.residual_weight is not None:
                nn.init.zeros_(module.residual_weight)
        elif isinstance(module, ZeroComputationExperts):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=std)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, ExpertBiasRouter):
            nn.init.zeros_(module.expert_bias)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in Transformers; and weights in a CPU's memory begin at cache lines, as fresh ones do.

        Those of a safetensors file stay where the file is mapped, at multiples of 8 bytes. Matrix products then sum in
        another order: a loaded model's logits would differ from the saved one's in the last bits.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for weight in chain(model.parameters(), model.buffers()):
            if weight.device.type == "cpu" and weight.data_ptr() % CACHE_LINE:
                weight.data = weight.data.clone()
        return loaded

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """Accept Ava's names in `from_pretrained(..., experts_implementation=...)`; see the config."""
        if requested_experts is not None:
            if requested_experts not in EXPERTS_IMPLEMENTATIONS:
                allowed = ", ".join(EXPERTS_IMPLEMENTATIONS)
                raise ValueError(f"experts_implementation = {requested_experts!r}: must be one of {allowed}")
            self.config.experts_implementation = requested_experts
        return self.config.experts_implementation or "auto"

    def set_experts_implementation(self, experts_implementation: str) -> None:  # type: ignore[override]
        """Switch how experts are evaluated; takes effect from the next forward pass."""
        self.get_correct_experts_implementation(experts_implementation)


class EnhancedMoEModel(EnhancedMoEPreTrainedModel):
    """Embedding, decoder layers and final norm.

    Attributes:
        auxiliary_scale: see `AuxiliaryGradient.scale`. `train()` sets it: to what HF's Trainer and those made from it
            do with their loss, else to 1. A loop that divides or multiplies a loss of its own sets it after `train()`;
            one that differentiates `loss` needn't.
    """

    def __init__(self, config: EnhancedMoEConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([DecoderLayer(config, i) for i in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.auxiliary_scale = 1.0
        self.bias_steps = BiasSteps() if config.router == "expert_bias" else None
        self.post_init()

    def train(self, mode: bool = True) -> EnhancedMoEModel:
        """As in PyTorch; see `auxiliary_scale`."""
        if mode:
            step = adopt_trainer(self.config)
            self.auxiliary_scale = step.scale
            if self.bias_steps is not None:
                self.bias_steps.begin(self, step.number)
        return super().train(mode)

    def auxiliary_gradient(self) -> AuxiliaryGradient | None:
        """A fresh `AuxiliaryGradient` for one forward pass; None in evaluation or without autograd."""
        if not (self.training and torch.is_grad_enabled()):
            return None
        return AuxiliaryGradient(self.auxiliary_scale, added=self.auxiliary_scale != 0)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        document_ids: Tensor | None = None,
        output_routes: bool = False,
        routes: Sequence[Routes] | None = None,
        auxiliary_gradient: AuxiliaryGradient | None = None,
        **kwargs,
    ) -> EnhancedMoEModelOutput:
        """Run the decoder over `input_ids` (B, S) or `inputs_embeds` (B, S, D).

        Args:
            attention_mask: (B, S_kv), 0 for padding. Padding takes part in no statistic and no auxiliary loss.
            position_ids: (B, S); counted from the cache's length by default. Without attention mask and cache,
                positions that begin anew begin a document, as Transformers' own models have it.
            document_ids: (B, S); tokens attend only within their own document (packed sequences).
            output_router_logits: return router logits and expert choices too; by default as the configuration says.
            output_routes: return where each layer sent its tokens.
            routes: what an earlier pass over the same tokens returned (or `ava_core.generation.rollout.record_routes`
                collected), one per layer: the tokens go there again, and gate values are computed anew.
            auxiliary_gradient: how the routers' losses enter the backward pass where the differentiated loss doesn't
                contain them; by default, in training, their weighted sum times `auxiliary_scale`.
            return_dict: False returns a tuple of what isn't None.

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds` given; `routes` of another number of
                layers or tokens.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if self.gradient_checkpointing and self.training:
            use_cache, past_key_values = False, None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + seen
        warn_beyond(self.config.max_position_embeddings, position_ids)
        masks = layer_masks(self.config, inputs_embeds, attention_mask, past_key_values, position_ids, document_ids)
        token_mask_T = None
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            token_mask_T = attention_mask[:, -inputs_embeds.shape[1] :].reshape(-1).bool()
        if output_hidden_states is None:
            output_hidden_states = getattr(self.config, "output_hidden_states", False)
        if output_router_logits is None:
            output_router_logits = getattr(self.config, "output_router_logits", False)

        rotary = self.rotary_emb(position_ids)
        tapes = self._tapes(routes)
        gradient = auxiliary_gradient or self.auxiliary_gradient()
        x_BSD, gate_logits = inputs_embeds, None
        hidden_states, layers = [], []
        for layer, mask, tape in zip(self.layers, masks, tapes, strict=True):
            if output_hidden_states:
                hidden_states.append(x_BSD)
            # Positional, because reentrant checkpointing differentiates positional arguments only.
            x_BSD, gate_logits, *routed = layer(
                x_BSD,
                gate_logits,
                rotary,
                mask,
                token_mask_T,
                past_key_values,
                tape,
                output_router_logits,
                gradient,
            )
            layers.append(routed)
        x_BSD = self.norm(x_BSD)
        balance, z, diversity, statistics, router_logits, choices = zip(*layers, strict=True)
        losses = [None if layer[0] is None else torch.stack(layer).mean() for layer in (balance, z, diversity)]
        if gradient is not None:
            if self.bias_steps is not None:
                self.bias_steps.add(statistics)
            for loss in losses:
                gradient.leave_to(loss)
            if output_router_logits and self.config.balance_loss_weight:
                router_logits = tuple(logits.detach() for logits in router_logits)
        return EnhancedMoEModelOutput(
            last_hidden_state=x_BSD,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*hidden_states, x_BSD) if output_hidden_states else None,
            balance_loss=losses[0],
            router_z_loss=losses[1],
            router_diversity=losses[2],
            router_logits=router_logits if output_router_logits else None,
            router_choices=choices if output_router_logits else None,
            router_statistics=statistics,
            routes=tuple(tape.routes for tape in tapes if tape and tape.routes) if output_routes else None,
        )

    def _tapes(self, routes: Sequence[Routes] | None) -> Sequence[RouteTape | None]:
        """A tape per layer for this pass alone: empty, or filled with what is to be replayed."""
        if routes is None:
            if torch.compiler.is_compiling() and self.gradient_checkpointing and self.training:
                # A compiled graph can't mutate a tape inside a checkpoint; its recomputation runs the same operations.
                return [None] * len(self.layers)
            return [RouteTape() for _ in self.layers]
        if len(routes) != len(self.layers):
            raise ValueError(f"routes = {len(routes)} layers: must be the model's {len(self.layers)}")
        return [RouteTape(recorded) for recorded in routes]
