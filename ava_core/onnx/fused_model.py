"""The fused graph as a Transformers model. Shapes: see `ava_core.models.shapes`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from ava_core.models import EnhancedMoEConfig
from ava_core.onnx.onnx_model import GraphInputs, OnnxCausalLM, OnnxCausalLMOutput
from ava_core.onnx.session import DecoderSession, Experts, KVCache

FIRST_CAPACITY = 64
"""Positions that a new cache has room for, at least; it doubles when it is full."""


class FusedCausalLM(OnnxCausalLM):
    """A fused graph on ONNX Runtime; made by `load_onnx`."""

    def __init__(
        self, config: EnhancedMoEConfig, decoder: DecoderSession, with_hidden: Callable[[], DecoderSession]
    ) -> None:
        super().__init__(config)
        self.decoder, self._with_hidden = decoder, with_hidden
        self.eval()

    def _run(self, inputs: GraphInputs) -> OnnxCausalLMOutput:
        """Positions are counted by the graph: those of a row's own tokens, without padding. Logits at padding are 0."""
        B, S = inputs.input_ids.shape
        layer = _layer_of(inputs.cache, B) if inputs.cache is not None else None
        seen = layer.get_seq_length() if layer is not None else 0
        real_BS = _real_tokens(B, S, seen, inputs.attention_mask)
        _require_consecutive(inputs.position_ids, real_BS)
        experts = Experts() if inputs.router else None
        if inputs.hidden and not self.decoder.hidden:
            self.decoder = self._with_hidden()
        hidden: list[np.ndarray] | None = [] if inputs.hidden else None
        passes = _Passes(self.decoder, inputs.input_ids.numpy(), real_BS.numpy(), experts, hidden)
        documents_BS = inputs.document_ids
        if documents_BS is not None and seen:
            raise ValueError("document_ids: must be None when past_key_values holds positions")
        if documents_BS is not None and len(documents_BS.unique()) > 1:
            if inputs.use_cache:
                raise ValueError("document_ids: need use_cache=False: documents of one row have no cache in common")
            logits_BSV = passes.by_document(documents_BS.numpy())
        else:
            kept = layer is not None and inputs.use_cache
            cache = layer.room_for(self.decoder, S) if layer is not None and kept else self.decoder.cache(B, S)
            logits_BSV = passes.whole(cache, inputs.logits_to_keep)
        if layer is not None and inputs.use_cache:
            layer.positions += S
        if inputs.logits_to_keep:
            logits_BSV = logits_BSV[:, -inputs.logits_to_keep :]
        output = OnnxCausalLMOutput(logits=torch.from_numpy(logits_BSV))
        if hidden:
            output.hidden_states = (torch.from_numpy(hidden[-1]),)
        if experts is not None:
            output.router_logits = tuple(torch.from_numpy(layer_logits) for layer_logits in experts.logits)
            output.router_choices = tuple(torch.from_numpy(weights > 0) for weights in experts.weights)
        return output


class _Passes:
    """Passes of the graph over a batch whose rows may be padded on either side."""

    def __init__(
        self,
        decoder: DecoderSession,
        tokens_BS: np.ndarray,
        real_BS: np.ndarray,
        experts: Experts | None,
        hidden: list[np.ndarray] | None,
    ) -> None:
        self.decoder, self.tokens_BS, self.real_BS = decoder, tokens_BS, real_BS
        self.experts, self.hidden = experts, hidden
        self.shape = (*tokens_BS.shape, decoder.shape.vocab_size)

    def whole(self, cache: KVCache, logits_to_keep: int) -> np.ndarray:
        """All rows at once; logits (B, S, V), or (B, 1, V) if only the last are wanted and no row ends in padding."""
        # The graph wants padding on the right. A row of padding alone runs one token that is taken back afterwards.
        order_BS = np.argsort(~self.real_BS, axis=1, kind="stable")
        count_B = self.real_BS.sum(axis=1)
        before_B = cache.lengths.copy()
        last_only = logits_to_keep == 1 and bool(self.real_BS[:, -1].all())
        last_only = last_only and self.experts is None and self.hidden is None
        logits = self.decoder.run(
            np.take_along_axis(self.tokens_BS, order_BS, axis=1),
            cache,
            new_tokens_B=np.maximum(count_B, 1),
            all_logits=not last_only,
            experts=self.experts,
            hidden=self.hidden,
        )
        cache.lengths[:] = before_B + count_B
        if last_only:
            return logits[:, None].copy()
        self._scatter_experts(order_BS)
        if self.hidden is not None:
            hidden_BSD = self.hidden.pop().reshape(*order_BS.shape, -1)
            self.hidden.append(_put_back(hidden_BSD, order_BS) * self.real_BS[..., None])
        return _put_back(logits, order_BS) * self.real_BS[..., None]

    def by_document(self, document_ids_BS: np.ndarray) -> np.ndarray:
        """Each document of each row by itself, (B, S, V): a token sees its own document only."""
        if self.hidden is not None:
            raise ValueError("document_ids: must be None when hidden states are wanted")
        logits_BSV = np.zeros(self.shape, np.float32)
        gathered: list[tuple[int, np.ndarray, Experts]] = []
        for row, document_ids_S in enumerate(document_ids_BS):
            for document in np.unique(document_ids_S[self.real_BS[row]]):
                positions = np.flatnonzero((document_ids_S == document) & self.real_BS[row])
                experts = Experts() if self.experts is not None else None
                cache = self.decoder.cache(1, len(positions))
                tokens = self.tokens_BS[row, positions][None]
                logits_BSV[row, positions] = self.decoder.run(tokens, cache, all_logits=True, experts=experts)[0]
                if experts is not None:
                    gathered.append((row, positions, experts))
        if self.experts is not None:
            config, (B, S) = self.decoder.shape, self.tokens_BS.shape
            for name in ("logits", "weights"):
                together = np.zeros((config.num_layers, B, S, config.num_experts), np.float32)
                for row, positions, experts in gathered:
                    together[:, row, positions] = getattr(experts, name)[:, 0]
                setattr(self.experts, name, together.reshape(config.num_layers, B * S, -1))
        return logits_BSV

    def _scatter_experts(self, order_BS: np.ndarray) -> None:
        if self.experts is not None:
            for name in ("logits", "weights"):
                per_layer = [_put_back(layer, order_BS) for layer in getattr(self.experts, name)]
                setattr(self.experts, name, np.stack(per_layer).reshape(len(per_layer), order_BS.size, -1))


def _put_back(values_BSN: np.ndarray, order_BS: np.ndarray) -> np.ndarray:
    """Values of sorted tokens, at the tokens' positions before the sort."""
    out = np.empty_like(values_BSN)
    np.put_along_axis(out, order_BS[..., None], values_BSN, axis=1)
    return out


def _real_tokens(B: int, S: int, seen: int, attention_mask: Tensor | None) -> Tensor:
    """Bool (B, S): which of the new tokens aren't padding."""
    if attention_mask is None:
        return torch.ones(B, S, dtype=torch.bool)
    if tuple(attention_mask.shape) != (B, seen + S):
        raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}: must be {(B, seen + S)}")
    return attention_mask[:, seen:] != 0


def _require_consecutive(position_ids: Tensor | None, real_BS: Tensor) -> None:
    if position_ids is None or position_ids.shape[-1] < 2:
        return
    neighbours = real_BS[:, 1:] & real_BS[:, :-1]
    steps = position_ids.expand(real_BS.shape).diff(dim=1)
    if not bool((steps == 1)[neighbours].all()):
        raise ValueError("position_ids: must grow by one from token to token: the graph counts positions itself")


class _CacheLayer(CacheLayerMixin):
    """All layers of the decoder's cache, as the only layer of a Transformers cache.

    Attributes:
        positions: tokens that the cache was given, padding included, which isn't kept.
    """

    is_croppable = True

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.positions = rows, 0
        self.cache: KVCache | None = None

    def room_for(self, decoder: DecoderSession, tokens: int) -> KVCache:
        """The cache, grown if `tokens` more need it.

        Raises:
            ValueError: they are more than the model's context holds.
        """
        longest = int(self.cache.lengths.max()) if self.cache is not None else 0
        if self.cache is None or longest + tokens > self.cache.capacity:
            limit = decoder.shape.max_position_embeddings
            if longest + tokens > limit:
                raise ValueError(f"{longest + tokens} tokens: the model's context holds {limit}")
            capacity = min(limit, max(FIRST_CAPACITY, 2 * longest, longest + tokens))
            grown = decoder.cache(self.rows, capacity)
            if self.cache is not None:
                grown.lengths[:] = self.cache.lengths
                for new, old in zip(grown.buffers, self.cache.buffers, strict=True):
                    new[:, :, :longest] = old[:, :, :longest]
            self.cache = grown
        return self.cache

    def get_seq_length(self) -> int:
        return self.positions

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.positions + query_length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError("keys and values stay with ONNX Runtime")

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("keys and values stay with ONNX Runtime")

    def reset(self) -> None:
        self.cache, self.positions = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row beam_idx[i] was."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(self.rows).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        order = indices.numpy()
        if self.cache is not None and not np.array_equal(order, np.arange(self.rows)):
            lengths, length = self.cache.lengths[order], int(self.cache.lengths.max())
            if len(order) == self.rows:
                for buffer in self.cache.buffers:
                    buffer[:, :, :length] = buffer[order, :, :length]
            else:
                self.cache = KVCache([np.ascontiguousarray(buffer[order]) for buffer in self.cache.buffers])
            self.cache.lengths[:] = lengths
        self.rows = len(order)

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens, which must not be padding; Transformers gives their number as a negative one."""
        taken = abs(int(tokens_to_remove))
        if self.cache is not None:
            self.cache.lengths[:] = np.maximum(self.cache.lengths - taken, 0)
        self.positions -= taken


def _layer_of(cache: Cache, rows: int) -> _CacheLayer:
    """The decoder's layer in a Transformers cache, put there if the cache is empty."""
    if len(cache.layers) == 1 and isinstance(cache.layers[0], _CacheLayer):
        layer = cache.layers[0]
        if layer.rows != rows:
            raise ValueError(f"input_ids have {rows} rows, past_key_values {layer.rows}: must be equal")
        return layer
    if not isinstance(cache, DynamicCache) or cache.get_seq_length():
        raise ValueError(f"past_key_values is a {type(cache).__name__}: must be an empty DynamicCache, or this model's")
    layer = _CacheLayer(rows)
    cache.layers[:] = [layer]
    return layer
