"""What a model makes of a stream of tokens: the state before each, by which contexts are compared, and the loss.

The state is what goes into the last layer's experts, which the paper found best and we do too (benchmarks/LOG.md). The
windows are those in which evaluation scores, so a context in the datastore is as long as one that is looked up.
Shapes: B windows of S tokens, T tokens that are predicted, D the model's dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ava_core.data.batches import document_ids, scoring_windows
from ava_core.losses.token import token_nll


class Reader:
    """Runs a model over streams, in batches that are the same on every run.

    Args:
        model: a decoder of Ava's, in evaluation mode.
        sequence_length: S.
        boundary_token_id: the token that ends a document.
        batch_size: B.
    """

    def __init__(self, model: Any, *, sequence_length: int, boundary_token_id: int, batch_size: int) -> None:
        self._model = model
        self._length, self._boundary, self._rows = sequence_length, boundary_token_id, batch_size
        self.dimension: int = model.config.hidden_size
        self._states_BSD: Tensor | None = None
        model.base_model.layers[-1].moe.register_forward_pre_hook(self._keep)

    def keys(self, tokens: np.ndarray, first: int = 0) -> Iterator[np.ndarray]:
        """The key of each token of the stream, from batch `first` on: float32 (T, D), of length 1."""
        for batch in islice(self._windows(tokens), first, None):
            with torch.inference_mode():
                self._model.base_model(**self._inputs(batch))
                yield self._keys(batch.mask)

    def keys_and_nats(self, tokens: np.ndarray, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same, and what the model loses on each token, in nats: float64 (T,)."""
        for batch in islice(self._windows(tokens), first, None):
            with torch.inference_mode():
                logits = self._model(**self._inputs(batch)).logits
                targets_BS = torch.from_numpy(batch.targets).to(logits.device)
                nats_BS = token_nll(logits, targets_BS).double().cpu().numpy()
                yield self._keys(batch.mask), nats_BS[batch.mask]

    def _windows(self, tokens: np.ndarray) -> Iterator[Any]:
        return scoring_windows(tokens, self._length, self._boundary, batch_size=self._rows)

    def _inputs(self, batch: Any) -> dict[str, Any]:
        device = self._model.device
        return {
            "input_ids": torch.from_numpy(batch.inputs).to(device),
            "document_ids": torch.from_numpy(document_ids(batch.inputs, self._boundary)).to(device),
            "use_cache": False,
        }

    def _keep(self, experts: Any, inputs: tuple[Tensor, ...]) -> None:
        self._states_BSD = inputs[0]

    def _keys(self, mask_BS: np.ndarray) -> np.ndarray:
        assert self._states_BSD is not None
        states_TD = self._states_BSD[torch.from_numpy(mask_BS).to(self._states_BSD.device)].float()
        return torch.nn.functional.normalize(states_TD, dim=-1).cpu().numpy()
