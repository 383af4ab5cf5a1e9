"""The portable graph as a Transformers model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from ava_core.models import EnhancedMoEConfig
from ava_core.onnx.loading import hidden_output
from ava_core.onnx.onnx_model import GraphInputs, OnnxCausalLM, OnnxCausalLMOutput


class PortableCausalLM(OnnxCausalLM):
    """A portable graph on ONNX Runtime; made by `load_onnx`."""

    def __init__(
        self,
        config: EnhancedMoEConfig,
        session: onnxruntime.InferenceSession,
        with_hidden: Callable[[], onnxruntime.InferenceSession],
    ) -> None:
        super().__init__(config)
        self.session, self._with_hidden = session, with_hidden
        layers = range(config.num_layers)
        self._past_names = [f"past_key_values.{layer}.{part}" for layer in layers for part in ("key", "value")]
        self._present_names = [f"present.{layer}.{part}" for layer in layers for part in ("key", "value")]
        self.eval()

    def _run(self, inputs: GraphInputs) -> OnnxCausalLMOutput:
        B, S = inputs.input_ids.shape
        cache = inputs.cache
        seen = cache.get_seq_length() if cache is not None else 0
        position_ids = inputs.position_ids
        if position_ids is None:
            position_ids = torch.arange(seen, seen + S)
        feeds = {
            "input_ids": inputs.input_ids,
            "attention_mask": _segments(B, S, seen, inputs.attention_mask, inputs.document_ids),
            "position_ids": position_ids.expand(B, S),
            "logits_to_keep": torch.tensor([0 if inputs.hidden else inputs.logits_to_keep]),
        }
        arrays = {name: tensor.to(torch.int64).contiguous().numpy() for name, tensor in feeds.items()}
        arrays.update(zip(self._past_names, self._past(cache, B), strict=True))
        wanted = ["logits"]
        wanted += self._present_names if inputs.use_cache else []
        wanted += ["router_logits", "router_choices"] if inputs.router else []
        if inputs.hidden and not hidden_output(self.session):
            self.session = self._with_hidden()
        wanted += [hidden_output(self.session)] if inputs.hidden else []
        found = dict(zip(wanted, self.session.run(wanted, arrays), strict=True))
        if cache is not None and inputs.use_cache:
            _fill(cache, [torch.from_numpy(found[name]) for name in self._present_names])
        output = OnnxCausalLMOutput(logits=torch.from_numpy(found["logits"]))
        if inputs.hidden:
            output.hidden_states = (torch.from_numpy(found[hidden_output(self.session)]),)
            output.logits = torch.from_numpy(found["logits"][:, -inputs.logits_to_keep :])
        if inputs.router:
            output.router_logits = tuple(torch.from_numpy(found["router_logits"]))
            output.router_choices = tuple(torch.from_numpy(found["router_choices"]))
        return output

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
        if isinstance(layer, DynamicSlidingWindowLayer) and not layer.is_initialized:
            # The graph masks what is outside of a window, and its keys and values are those of all positions.
            layer = cache.layers[index] = DynamicLayer()
        if not isinstance(layer, DynamicLayer) or isinstance(layer, DynamicSlidingWindowLayer):
            raise ValueError(f"past_key_values is a {type(cache).__name__}: an ONNX model needs a DynamicCache")
        if not layer.is_initialized:
            layer.lazy_initialization(key, value)
        layer.keys, layer.values = key, value
