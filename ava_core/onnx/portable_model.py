"""The portable graph as a Transformers model."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ava_core.models import EnhancedMoEConfig
from ava_core.onnx.onnx_model import OnnxCausalLM, OnnxCausalLMOutput, refuse_other_inputs


class PortableCausalLM(OnnxCausalLM):
    """A portable graph on ONNX Runtime; made by `load_onnx`."""

    def __init__(self, config: EnhancedMoEConfig, session: onnxruntime.InferenceSession) -> None:
        super().__init__(config)
        self.session = session
        layers = range(config.num_layers)
        self._past_names = [f"past_key_values.{layer}.{part}" for layer in layers for part in ("key", "value")]
        self._present_names = [f"present.{layer}.{part}" for layer in layers for part in ("key", "value")]
        self.eval()

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool = False,
        logits_to_keep: int = 0,
        document_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> OnnxCausalLMOutput | tuple:
        """Run the model over `input_ids` (B, S); arguments as in `EnhancedMoEForCausalLM.forward`.

        Raises:
            ValueError: an argument that the graph can't take (`labels`, `inputs_embeds`, a 4-D mask, another kind of
                cache), or shapes that don't fit each other.
        """
        refuse_other_inputs(kwargs)
        if use_cache is None:
            use_cache = bool(self.config.use_cache)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        B, S = input_ids.shape
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = torch.arange(seen, seen + S).expand(B, S)
        feeds = {
            "input_ids": input_ids,
            "attention_mask": _segments(B, S, seen, attention_mask, document_ids),
            "position_ids": position_ids.expand(B, S),
            "logits_to_keep": torch.tensor([int(logits_to_keep)]),
        }
        arrays = {name: tensor.to(torch.int64).contiguous().numpy() for name, tensor in feeds.items()}
        arrays.update(zip(self._past_names, self._past(past_key_values, B), strict=True))
        wanted = ["logits"]
        wanted += self._present_names if use_cache else []
        wanted += ["router_logits", "router_choices"] if output_router_logits else []
        found = dict(zip(wanted, self.session.run(wanted, arrays), strict=True))
        if past_key_values is not None and use_cache:
            _fill(past_key_values, [torch.from_numpy(found[name]) for name in self._present_names])
        output = OnnxCausalLMOutput(
            logits=torch.from_numpy(found["logits"]), past_key_values=past_key_values if use_cache else None
        )
        if output_router_logits:
            output.router_logits = tuple(torch.from_numpy(found["router_logits"]))
            output.router_choices = tuple(torch.from_numpy(found["router_choices"]))
        return output.to_tuple() if return_dict is False else output

    def _past(self, cache: Cache | None, batch: int) -> list[np.ndarray]:
        """Keys and values of the positions that were seen, (B, G, P, A) each."""
        layers: list[Any] = [] if cache is None or cache.get_seq_length() == 0 else cache.layers
        if not layers:
            shape = (batch, self.config.num_key_value_heads or 0, 0, self.config.head_dim or 0)
            return [np.zeros(shape, np.float32)] * len(self._past_names)
        return [tensor.contiguous().numpy() for layer in layers for tensor in (layer.keys, layer.values)]


def _segments(B: int, S: int, seen: int, attention_mask: Tensor | None, document_ids: Tensor | None) -> Tensor:
    """The graph's attention_mask (B, X): 0 for padding, else the token's segment id, its document's number from 1."""
    if attention_mask is not None and tuple(attention_mask.shape) != (B, seen + S):
        raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}: must be {(B, seen + S)}")
    mask = torch.ones(B, seen + S, dtype=torch.int64) if attention_mask is None else (attention_mask != 0).long()
    if document_ids is None:
        return mask
    if seen:
        raise ValueError("document_ids: must be None when past_key_values holds positions")
    return mask * (document_ids - document_ids.min() + 1)


def _fill(cache: Cache, present: list[Tensor]) -> None:
    """Put the graph's keys and values, which include the earlier ones, into the cache."""
    for index in range(len(present) // 2):
        if len(cache.layers) <= index:
            cache.layers.append(DynamicLayer())
        layer, key, value = cache.layers[index], present[2 * index], present[2 * index + 1]
        if not isinstance(layer, DynamicLayer):
            raise ValueError(f"past_key_values is a {type(cache).__name__}: an ONNX model needs a DynamicCache")
        if not layer.is_initialized:
            layer.lazy_initialization(key, value)
        layer.keys, layer.values = key, value
