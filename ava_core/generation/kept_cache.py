"""The KV cache of a sequence that is continued again and again, as a conversation is: what was read isn't read anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.cache_utils import Cache

BY_LENGTH = {"dynamic", "longrope"}
"""Kinds of RoPE scaling whose angles depend on how long the text has become: a kept key would have those of a shorter
one, and the answer would be another than to the same text read at once."""


class KeptCache:
    """Keys and values of one sequence between two decodings.

    Args:
        model: causal, of PyTorch or ONNX Runtime; a cache is that of one model.
    """

    def __init__(self, model: Any) -> None:
        rope = getattr(model.config, "rope_parameters", None) or {}
        kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # of all layers, or by their kind
        self._usable = BY_LENGTH.isdisjoint(part.get("rope_type") for part in kinds)
        self._cache: Cache | None = None
        self._read: list[int] = []

    def begin(self, token_ids: Sequence[int]) -> Cache | None:
        """The cache of the beginning that `token_ids` and what was read have in common; at least one token is left to
        be read. None if there is nothing in common, or the cache can't go back that far, as one of a sliding window.

        Until `keep` nothing is kept: a decoding that breaks off leaves the cache in the middle of a token.
        """
        cache, read = self._cache, self._read
        self.forget()
        pairs = enumerate(zip(token_ids[:-1], read, strict=False))
        same = next((index for index, (new, old) in pairs if new != old), min(len(token_ids) - 1, len(read)))
        if cache is None or not same:
            return None
        if same < len(read):
            if not cache.is_croppable or any(cache.is_sliding):
                return None
            cache.crop(same - len(read))
        return cache

    def keep(self, token_ids: Sequence[int], cache: Cache | None) -> None:
        """Keep the cache of a decoding that gave `token_ids`, prompt included; the last ones may not be in it."""
        if self._usable and cache is not None:
            self._cache, self._read = cache, list(token_ids[: cache.get_seq_length()])

    def forget(self) -> None:
        """Keep nothing."""
        self._cache, self._read = None, []
