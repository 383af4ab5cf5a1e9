"""What exported models have in common as Transformers models."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils import ModelOutput

from ava_core.errors import AvaError
from ava_core.models import EnhancedMoEConfig
from ava_core.models.context import BoundedGeneration


@dataclass
class OnnxCausalLMOutput(ModelOutput):
    """Attributes:
    logits: (B, S or logits_to_keep, V), float32.
    past_key_values: the KV cache, if one is used.
    hidden_states: of the last layer after its norm, (B, S, D), with `output_hidden_states`.
    router_logits, router_choices: per layer, (T, E) float32 and bool, with `output_router_logits`.
    """

    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    router_logits: tuple[Tensor, ...] | None = None
    router_choices: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class GraphInputs:
    """What a graph is run over, as `EnhancedMoEForCausalLM.forward` has it.

    Attributes:
        input_ids: (B, S).
        attention_mask: (B, positions seen + S), 0 for padding; None if there is none.
        position_ids: (B, S); None counts on from what was seen.
        document_ids: (B, S); a token sees its own document only. None: all tokens of a row are one document.
        cache: keys and values of earlier positions.
        use_cache: whether those of the new ones join them.
        router: whether router logits and choices are wanted.
        hidden: whether hidden states are wanted.
        logits_to_keep: how many of the last positions; 0 means all.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    document_ids: Tensor | None
    cache: Cache | None
    use_cache: bool
    router: bool
    hidden: bool
    logits_to_keep: int


class OnnxCausalLM(PreTrainedModel, BoundedGeneration, GenerationMixin):
    """An exported decoder; made by `load_onnx`. Holds no PyTorch parameters, and runs on the CPU only."""

    config: EnhancedMoEConfig
    config_class = EnhancedMoEConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Type of activations and logits."""
        return torch.float32

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool = False,
        output_hidden_states: bool = False,
        logits_to_keep: int = 0,
        document_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> OnnxCausalLMOutput | tuple:
        """Run the model over `input_ids` (B, S); arguments as in `EnhancedMoEForCausalLM.forward`.

        Of the hidden states there are the last layer's only; the first call that wants them loads the graph again.

        Raises:
            ValueError: an argument that the graph can't take (`labels`, `inputs_embeds`, a 4-D mask, another kind of
                cache, for a fused graph positions with gaps), shapes that don't fit each other, or more tokens than
                the model's context holds.
        """
        _refuse_other_inputs(kwargs)
        if use_cache is None:
            use_cache = bool(self.config.use_cache)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        inputs = GraphInputs(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            document_ids=document_ids,
            cache=past_key_values,
            use_cache=use_cache,
            router=output_router_logits,
            hidden=output_hidden_states,
            logits_to_keep=int(logits_to_keep),
        )
        output = self._run(inputs)
        output.past_key_values = past_key_values if use_cache else None
        return output.to_tuple() if return_dict is False else output

    @abstractmethod
    def _run(self, inputs: GraphInputs) -> OnnxCausalLMOutput:
        """Logits, and what the router did if it is wanted; with `use_cache` the cache is written to."""

    def save_pretrained(self, *args, **kwargs) -> None:
        """Refused: the folder that the model was loaded from is the model.

        Raises:
            AvaError: always.
        """
        raise AvaError("an ONNX model can't be saved from memory: copy the folder that it was loaded from")


def _refuse_other_inputs(arguments: dict) -> None:
    """Refuse what only the PyTorch model takes.

    Raises:
        ValueError: such an argument isn't None.
    """
    for name in ("labels", "inputs_embeds", "shift_labels"):
        if arguments.get(name) is not None:
            raise ValueError(f"{name}: an ONNX model takes input_ids only and computes no loss")
