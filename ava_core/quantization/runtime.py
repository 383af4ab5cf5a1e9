"""The exported model on ONNX Runtime, as a Transformers model: `forward`, `generate`, a KV cache.

model = load_onnx(Path("out/int8"))
model.generate(**tokenizer("To be, or", return_tensors="pt"), max_new_tokens=32)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.utils import ModelOutput

from ava_core.errors import AvaError, IntegrityError
from ava_core.models import EnhancedMoEConfig
from ava_core.quantization.graph import GRAPH_FILE, WEIGHTS_FILE

NEEDED = (GRAPH_FILE, WEIGHTS_FILE, "config.json")


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


class OnnxCausalLM(PreTrainedModel, GenerationMixin):
    """An exported decoder; made by `load_onnx`. Holds no PyTorch parameters, and runs on the CPU only."""

    config: EnhancedMoEConfig
    config_class = EnhancedMoEConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"

    def __init__(self, config: EnhancedMoEConfig, session: onnxruntime.InferenceSession) -> None:
        super().__init__(config)
        self.session = session
        layers = range(config.num_layers)
        self._past_names = [f"past_key_values.{layer}.{part}" for layer in layers for part in ("key", "value")]
        self._present_names = [f"present.{layer}.{part}" for layer in layers for part in ("key", "value")]
        self.eval()

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
        for name in ("labels", "inputs_embeds", "shift_labels"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name}: an ONNX model takes input_ids only and computes no loss")
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
    """The graph's attention_mask (B, X): 0 for padding, else the number of the token's segment."""
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


def load_onnx(folder: Path, threads: int = 0) -> OnnxCausalLM:
    """Load the output of `ava quantize`.

    Args:
        folder: holds model.onnx, model.onnx.data and config.json; generation_config.json is used if it is there.
        threads: CPU threads; 0: as many as ONNX Runtime chooses.

    Raises:
        AvaError: a file is missing, or ONNX Runtime refuses the graph.
        IntegrityError: a file is damaged.
    """
    folder = Path(folder)
    for name in NEEDED:
        if not (folder / name).is_file():
            raise AvaError(f"{folder / name}: no such file: give the output folder of `ava quantize`")
    try:
        config = EnhancedMoEConfig.from_dict(json.loads((folder / "config.json").read_text()))
    except (ValueError, TypeError, KeyError) as error:
        raise IntegrityError(
            f"{folder / 'config.json'}: can't be read ({_line(error)}): run `ava quantize` again"
        ) from error
    model = OnnxCausalLM(config, _session(folder, threads))
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _session(folder: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Fold every DequantizeLinear into a float32 weight. Kept in the graph, the whole matrix is dequantised at each
    # token: 4 to 8 ms per million weights against 0.1 ms for the product itself.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Waiting threads would take the cores from PyTorch, which samples between two tokens.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(folder / GRAPH_FILE, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        raise IntegrityError(
            f"{folder / GRAPH_FILE}: ONNX Runtime can't load it ({_line(error)}): run `ava quantize` again"
        ) from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
