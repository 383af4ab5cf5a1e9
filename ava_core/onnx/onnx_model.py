"""What exported models have in common as Transformers models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from ava_core.errors import AvaError
from ava_core.models import EnhancedMoEConfig
from ava_core.models.context import BoundedGeneration


@dataclass
class OnnxCausalLMOutput(ModelOutput):
    """Attributes:
    logits: (B, S or logits_to_keep, V), float32.
    past_key_values: the KV cache, if one is used.
    router_logits, router_choices: per layer, (T, E) float32 and bool, with `output_router_logits`.
    """

    logits: Tensor | None = None
    past_key_values: Cache | None = None
    router_logits: tuple[Tensor, ...] | None = None
    router_choices: tuple[Tensor, ...] | None = None


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

    def save_pretrained(self, *args, **kwargs) -> None:
        """Refused: the folder that the model was loaded from is the model.

        Raises:
            AvaError: always.
        """
        raise AvaError("an ONNX model can't be saved from memory: copy the folder that it was loaded from")


def refuse_other_inputs(arguments: dict) -> None:
    """Refuse what only the PyTorch model takes.

    Raises:
        ValueError: such an argument isn't None.
    """
    for name in ("labels", "inputs_embeds", "shift_labels"):
        if arguments.get(name) is not None:
            raise ValueError(f"{name}: an ONNX model takes input_ids only and computes no loss")
