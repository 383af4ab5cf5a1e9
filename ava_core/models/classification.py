"""The decoder with a head that scores whole sequences: a classifier, or the reward model of TRL's RewardTrainer.

Shapes: see `shapes`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.utils.generic import can_return_tuple

from ava_core.models.auxiliary import AuxiliaryGradient, AuxiliaryWeights, weighted_sum
from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.modeling import EnhancedMoEModel, EnhancedMoEPreTrainedModel
from ava_core.models.outputs import EnhancedMoESequenceClassifierOutput, auxiliary_losses


class EnhancedMoEForSequenceClassification(EnhancedMoEPreTrainedModel):
    """The decoder and a linear head, `score`, over the hidden state of each sequence's last token.

    Padding may be on either side: the last token is that of `attention_mask`, else the last that isn't
    `config.pad_token_id`. The loss follows `config.problem_type` and `config.num_labels`, as in Transformers:
    regression (MSE), single-label (cross-entropy) or multi-label classification (BCE); the routers' weighted losses
    are added to it.
    """

    # The loss is a mean over sequences, so HF's Trainer is to divide it by its gradient accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: EnhancedMoEConfig):
        super().__init__(config)
        self.num_labels: int = config.num_labels or 2
        self.model = EnhancedMoEModel(config)
        self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        scored_positions: Tensor | None = None,
        **kwargs,
    ) -> EnhancedMoESequenceClassifierOutput:
        """Score B sequences; all arguments of `EnhancedMoEModel.forward`, and:

        Args:
            labels: (B,) class indices, or values if `num_labels` is 1 (regression); (B, num_labels) of 0 and 1 for
                several labels at once.
            scored_positions: (B, P), int64: what to score instead of each sequence's last token, where sequences hold
                several documents; logits are (B, P, num_labels), and there are no labels.

        Raises:
            ValueError: several sequences, and nothing tells where they end.
        """
        gradient = self.model.auxiliary_gradient()
        if labels is not None and torch.compiler.is_compiling():
            gradient = AuxiliaryGradient(added=False)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            auxiliary_gradient=gradient,
            return_dict=True,
            **kwargs,
        )
        hidden_BSD = outputs.last_hidden_state
        if scored_positions is None:
            last_B = self._last_positions(hidden_BSD, input_ids, attention_mask)
            pooled = hidden_BSD[torch.arange(len(last_B), device=last_B.device), last_B]
        else:
            pooled = hidden_BSD.take_along_dim(scored_positions[..., None], dim=1)
        logits = self.score(pooled)
        aux_loss = weighted_sum(AuxiliaryWeights(self.config), auxiliary_losses(outputs))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=None, labels=labels, pooled_logits=logits, config=self.config) + aux_loss
        return EnhancedMoESequenceClassifierOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            aux_loss=aux_loss,
            router_logits=outputs.router_logits,
            router_choices=outputs.router_choices,
            router_statistics=outputs.router_statistics,
        )

    def _last_positions(self, hidden_BSD: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """Index of each sequence's last token, (B,), int64."""
        B, S, _ = hidden_BSD.shape
        pad = self.config.pad_token_id
        if attention_mask is not None and attention_mask.dim() == 2:
            real_BS = attention_mask[:, -S:].bool()
        elif input_ids is not None and pad is not None:
            real_BS = input_ids != pad
        elif B == 1:
            real_BS = torch.ones(1, S, dtype=torch.bool, device=hidden_BSD.device)
        else:
            raise ValueError(
                f"{B} sequences without attention_mask: can't tell where they end: pass it, or input_ids with"
                " config.pad_token_id set"
            )
        return (torch.arange(S, device=hidden_BSD.device) * real_BS.to(hidden_BSD.device)).argmax(dim=-1)
