"""Rows of a KV cache that take common tokens once and try branches after them: fused ONNX graphs, and any model of
Transformers' kind.

A branch isn't copied to a row of its own: it is appended, its logits are read, and the row is shortened again.

Shapes: see `ava_core.models.shapes`; R is the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ava_core.tasks.branches import Tokens


class Rows(Protocol):
    """Rows of one cache."""

    def begin(self, stem: Tokens, rows: int, capacity: int) -> None:
        """Make room for `rows` rows of `capacity` tokens that all begin with `stem`."""

    def load(self, prefixes: Sequence[Tokens]) -> None:
        """Let each row, up to as many as there are prefixes, hold the stem and its prefix and nothing else."""

    def logits(self, branches: Sequence[Tokens]) -> Tensor:
        """Logits (R, S, V) of a branch after what each row holds, which stays as it was. Those of padding mean nothing.

        An empty branch stands for none. The next call may overwrite them.
        """


def rows_of(model: PreTrainedModel) -> Rows:
    """The rows that fit a model: our own of ONNX Runtime where the graph updates its cache in place."""
    decoder = getattr(model, "decoder", None)
    return FusedRows(decoder) if decoder is not None and hasattr(decoder, "cache") else CachedRows(model)


class FusedRows:
    """Rows of a `DecoderSession`'s cache."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.stem_length = 0
        self.cache: Any = None

    def begin(self, stem: Tokens, rows: int, capacity: int) -> None:
        """See `Rows`."""
        if self.cache is None or self.cache.rows < rows or self.cache.capacity < capacity:
            self.cache = self.decoder.cache(rows, capacity)
        self.cache.lengths[:] = 0
        self.stem_length = len(stem)
        if stem:
            self.decoder.run(np.asarray([stem], np.int64), self.cache)
            for row in range(1, self.cache.rows):
                self.cache.move(0, row)

    def load(self, prefixes: Sequence[Tokens]) -> None:
        """See `Rows`."""
        self.cache.lengths[:] = self.stem_length
        self._append(prefixes, 0, all_logits=False)

    def logits(self, branches: Sequence[Tokens]) -> Tensor:
        """See `Rows`."""
        before = self.cache.lengths.copy()
        parts = self._append(branches, 0, all_logits=True)
        self.cache.lengths[:] = before
        if len(parts) == 1:
            return torch.from_numpy(parts[0])
        logits = torch.zeros(len(branches), max(map(len, branches)), parts[0].shape[-1])
        row = 0
        for part in parts:
            logits[row : row + len(part), : part.shape[1]] = torch.from_numpy(part)
            row += len(part)
        return logits

    def _append(self, tokens: Sequence[Tokens], first_row: int, *, all_logits: bool) -> list[np.ndarray]:
        """Append to rows from `first_row` on, in as many passes as padding leaves room for; their logits."""
        longest = max(map(len, tokens))
        if not longest and not all_logits:
            return []
        held = self.cache.lengths[first_row : first_row + len(tokens)]
        # The graph wants room for a row's padding too.
        if len(tokens) > 1 and int(held.max()) + longest > self.cache.capacity:
            half = len(tokens) // 2
            # Copies: the second pass may have the same shape, and overwrite what the first gave.
            first = [part.copy() for part in self._append(tokens[:half], first_row, all_logits=all_logits)]
            return [*first, *self._append(tokens[half:], first_row + half, all_logits=all_logits)]
        longest = max(longest, 1)
        padded = np.zeros((len(tokens), longest), np.int64)
        for row, own in enumerate(tokens):
            padded[row, : len(own)] = own
        count = np.asarray([len(own) for own in tokens])
        # The graph appends a token at least; where there is none, it is taken back.
        logits = self.decoder.run(
            padded, self.cache, first_row=first_row, new_tokens_B=np.maximum(count, 1), all_logits=all_logits
        )
        self.cache.lengths[first_row : first_row + len(tokens)] -= count == 0
        return [logits]


class CachedRows:
    """Rows of a Transformers cache: prefixes are padded on the left, branches on the right."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model
        self.stem: Tokens = ()
        self.stem_cache: DynamicCache | None = None

    def begin(self, stem: Tokens, rows: int, capacity: int) -> None:
        """See `Rows`."""
        self.stem, self.stem_cache = stem, None
        if stem:
            self.stem_cache = self._empty()
            self._run(torch.tensor([stem]), None, None, self.stem_cache, last_only=True)

    def load(self, prefixes: Sequence[Tokens]) -> None:
        """See `Rows`."""
        R, longest = len(prefixes), max(map(len, prefixes))
        self.cache = self._empty()
        if self.stem_cache is not None:
            layers: Any = self.stem_cache.layers
            for index, layer in enumerate(layers):
                self.cache.update(*(part.expand(R, -1, -1, -1) for part in (layer.keys, layer.values)), index)
        stem = len(self.stem)
        self.mask = torch.ones(R, stem + longest, dtype=torch.long)
        tokens, positions = torch.zeros(R, longest, dtype=torch.long), torch.zeros(R, longest, dtype=torch.long)
        for row, own in enumerate(prefixes):
            padding = longest - len(own)
            self.mask[row, stem : stem + padding] = 0
            tokens[row, padding:] = torch.tensor(own, dtype=torch.long)
            positions[row, padding:] = torch.arange(stem, stem + len(own))
        self.held = self.mask.sum(dim=1)
        if longest:
            self._run(tokens, self.mask, positions, self.cache, last_only=True)

    def logits(self, branches: Sequence[Tokens]) -> Tensor:
        """See `Rows`."""
        R, longest = len(branches), max(map(len, branches))
        tokens, mask = torch.zeros(R, longest, dtype=torch.long), torch.zeros(R, longest, dtype=torch.long)
        for row, own in enumerate(branches):
            tokens[row, : len(own)] = torch.tensor(own, dtype=torch.long)
            mask[row, : max(len(own), 1)] = 1  # a row that looks at nothing would be nan
        positions = self.held[:, None] + torch.arange(longest)
        limit = self.model.config.max_position_embeddings - 1
        logits = self._run(tokens, torch.cat((self.mask, mask), dim=1), positions.clamp_max(limit), self.cache)
        self.cache.crop(-longest)
        return logits

    def _empty(self) -> DynamicCache:
        return DynamicCache()  # of all positions, also in layers with a sliding window: `crop` goes back further

    def _run(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        positions: Tensor | None,
        cache: DynamicCache,
        *,
        last_only: bool = False,
    ) -> Tensor:
        device = self.model.device
        # Not inference_mode: weights that DeepSpeed gathers for the pass of a model in training couldn't be trained on.
        with torch.no_grad():
            output = self.model(
                input_ids=tokens.to(device),
                attention_mask=None if mask is None or bool(mask.all()) else mask.to(device),
                position_ids=None if positions is None else positions.to(device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=int(last_only),
            )
        return output.logits
