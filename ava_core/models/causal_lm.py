"""The decoder with a head over the vocabulary, which computes its own loss. Shapes: see `shapes`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.utils.generic import can_return_tuple

from ava_core.losses import CrossEntropy, TokenContext, UnifiedLoss
from ava_core.losses import shift_labels as align_labels
from ava_core.models.auxiliary import AuxiliaryGradient, AuxiliaryWeights, weighted_sum
from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.context import BoundedGeneration
from ava_core.models.diagnosis import NonFiniteError
from ava_core.models.modeling import EnhancedMoEModel, EnhancedMoEPreTrainedModel
from ava_core.models.outputs import EnhancedMoECausalLMOutput, auxiliary_losses
from ava_core.models.prediction_heads import PredictionHeads
from ava_core.models.routing import Routes


class EnhancedMoEForCausalLM(EnhancedMoEPreTrainedModel, BoundedGeneration, GenerationMixin):
    """The decoder with a head over the vocabulary; computes its own loss with `UnifiedLoss`.

    `loss_function` may be replaced by another `UnifiedLoss` (label smoothing, further parts).

    Attributes:
        prediction_heads: multi-token prediction heads, while training attaches them; see
            `ava_core.models.prediction_heads`.
        raise_non_finite: whether a loss on a CPU that is nan or infinite raises `NonFiniteError`, which names the
            layer, in training and evaluation alike. On accelerators the loss isn't read here, for that would wait
            for the device: whoever reads it raises (`ava_core.training` does). Set it to False under a loss scaler
            that is meant to skip steps whose loss overflows in float16.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    # What HF's Trainer asks for, to pass num_items_in_batch
    accepts_loss_kwargs = True

    def __init__(self, config: EnhancedMoEConfig):
        super().__init__(config)
        self.raise_non_finite = True
        self.model = EnhancedMoEModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.prediction_heads: PredictionHeads | None = None
        self.loss_function = UnifiedLoss([CrossEntropy()], AuxiliaryWeights(config))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        document_ids: Tensor | None = None,
        output_routes: bool = False,
        routes: Sequence[Routes] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_logits: bool = True,
        **kwargs,
    ) -> EnhancedMoECausalLMOutput:
        """Run the model; arguments as in `EnhancedMoEModel.forward`, and:

        Args:
            labels: (B, S), the input ids with -100 where nothing is to be predicted; shifted inside.
            shift_labels: (B, S), labels that the caller has aligned with the logits; instead of `labels`. Not in the
                signature, as in Transformers: its Trainer would evaluate a loss only for batches that hold both.
            logits_to_keep: compute logits of this many last positions (0: all), or of the given indices.
            num_items_in_batch: divisor of the summed token losses, for accumulated batches.
            loss_function: a loss to compute instead of the model's own, for this call; what measurements give, so that
                they never see label smoothing and the like. Not in the signature either.
            teacher: `TeacherTargets` (B, S, ...) of the positions, for a loss that has a part for them; nor is this.
            return_logits: False computes head and loss in chunks of tokens, never holding all logits: less memory, more
                speed (`ava_core.losses.chunked`).

        Raises:
            NonFiniteError: the loss is nan or infinite; see `raise_non_finite`.
            ValueError: in training, the loss has a multi-token part and the model no prediction heads.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
            "output_router_logits": output_router_logits,
            "output_hidden_states": output_hidden_states,
            "document_ids": document_ids,
            "output_routes": output_routes,
            "routes": routes,
        }
        shift_labels, teacher = kwargs.get("shift_labels"), kwargs.get("teacher")
        loss_function: UnifiedLoss = kwargs.get("loss_function") or self.loss_function
        aligned_BS = shift_labels if labels is None else align_labels(labels)
        gradient = self.model.auxiliary_gradient()
        if aligned_BS is not None and torch.compiler.is_compiling():
            gradient = AuxiliaryGradient(added=False)
        outputs = self.model(**inputs, auxiliary_gradient=gradient, return_dict=True)
        hidden_BSD = outputs.last_hidden_state
        logits = None
        if return_logits or aligned_BS is None:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden_BSD[:, keep])

        auxiliary = auxiliary_losses(outputs)
        aux_loss = weighted_sum(loss_function.auxiliary_weights, auxiliary)
        loss, main_loss, parts = None, None, None
        if aligned_BS is not None:
            whole = logits is not None and logits.shape[1] == hidden_BSD.shape[1]
            future = self._future_hidden(hidden_BSD, loss_function)
            context = None
            if loss_function.needs_context:
                context = _context(input_ids, document_ids, position_ids, attention_mask)
                context.teacher = teacher
            computed = loss_function(
                aligned_BS,
                logits=logits if whole else None,
                hidden=None if whole else hidden_BSD,
                head_weight_VD=None if whole and future is None else self.lm_head.weight,
                future_hidden=future,
                auxiliary=auxiliary,
                context=context,
                num_items=num_items_in_batch,
            )
            loss, main_loss, aux_loss, parts = computed.total, computed.main, computed.auxiliary, computed.parts
            if gradient is not None:
                gradient.leave_to(main_loss)
            if self._reads_loss(loss) and not math.isfinite(loss.detach()):
                raise NonFiniteError.of(
                    self,
                    loss,
                    **inputs,
                    shift_labels=aligned_BS,
                    num_items_in_batch=num_items_in_batch,
                    teacher=teacher,
                )
        return EnhancedMoECausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            aux_loss=aux_loss,
            loss_parts=parts,
            router_logits=outputs.router_logits,
            router_choices=outputs.router_choices,
            router_statistics=outputs.router_statistics,
            routes=outputs.routes,
            main_loss=main_loss,
        )

    def _reads_loss(self, loss: Tensor) -> bool:
        """Whether the value of `loss` is read: it would synchronise with a GPU, and break a compiled graph."""
        return self.raise_non_finite and loss.device.type == "cpu" and not torch.compiler.is_compiling()

    def _future_hidden(self, hidden_BSD: Tensor, loss_function: UnifiedLoss) -> tuple[Tensor, ...] | None:
        """Hidden states of the prediction heads, (B, S, D) each; None in evaluation or without a multi-token loss."""
        if loss_function.multi_token is None or not self.training:
            return None
        if self.prediction_heads is None:
            depth = loss_function.multi_token.depth
            raise ValueError(f"multi_token_depth = {depth}: needs attach_prediction_heads(model, {depth}) first")
        return self.prediction_heads(hidden_BSD)


def _context(
    input_ids: Tensor | None,
    document_ids: Tensor | None,
    position_ids: Tensor | None,
    attention_mask: Tensor | None,
) -> TokenContext:
    """What the loss may look at beside logits: input ids, and document ids as attention has them, -1 for padding."""
    if document_ids is None and attention_mask is None and position_ids is not None:
        document_ids = (position_ids.diff(dim=-1, prepend=position_ids[:, :1] - 1) != 1).cumsum(dim=-1)
        if input_ids is not None:
            document_ids = document_ids.expand_as(input_ids)
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
        present_BS = attention_mask if input_ids is None else attention_mask[:, -input_ids.shape[1] :]
        document_ids = torch.where(present_BS.bool(), 0 if document_ids is None else document_ids, -1)
    return TokenContext(inputs_BS=input_ids, document_ids_BS=document_ids)
