"""A model of ours as embedding: the mean of its last hidden states over the tokens of a text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ava_core.errors import AvaError
from ava_core.retrieval.embedding.embedder import in_batches, unit

BATCH_TOKENS = 8192


class OwnModel:
    """As `Embedder`, of a folder of `ava train` or another that gives a model with safetensors."""

    def __init__(self, model: Any, tokenizer: Any, identity: str) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self.identity = identity
        self.dimension: int = model.config.hidden_size
        self.max_tokens: int | None = model.config.max_position_embeddings

    @classmethod
    def open(cls, folder: Path, threads: int = 0) -> OwnModel:
        """Load the model; raises as `ava_core.generation.loading.load_model`.

        Raises:
            AvaError: it is a quantised one, which gives no hidden states.
        """
        from ava_core.generation.loading import ONNX_NAME, load_model

        if (folder / ONNX_NAME).is_file():
            raise AvaError(f"{folder}: is a quantised model, which gives no hidden states: give the one it was made of")
        model, tokenizer = load_model(folder, threads)
        digest = hashlib.sha256()
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return cls(model, tokenizer, f"model:{digest.hexdigest()[:16]}")

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def count_tokens(self, texts: Sequence[str]) -> list[int] | None:
        return [len(ids) for ids in self._tokens(texts)]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        begin = self._tokenizer.eos_token_id
        tokens = [[begin, *ids][: self.max_tokens] for ids in self._tokens(texts)]
        lengths = [len(ids) for ids in tokens]
        return unit(in_batches(lengths, BATCH_TOKENS, lambda rows: self._run(tokens, rows), self.dimension))

    def _run(self, tokens: Sequence[list[int]], rows: Sequence[int]) -> np.ndarray:
        import torch

        longest = max(len(tokens[row]) for row in rows)
        ids_BS = torch.full((len(rows), longest), self._tokenizer.pad_token_id)
        mask_BS = torch.zeros((len(rows), longest), dtype=torch.long)
        for place, row in enumerate(rows):
            ids_BS[place, : len(tokens[row])] = torch.tensor(tokens[row])
            mask_BS[place, : len(tokens[row])] = 1
        ids_BS, mask_BS = ids_BS.to(self._model.device), mask_BS.to(self._model.device)
        with torch.inference_mode():
            out = self._model.base_model(ids_BS, attention_mask=mask_BS)
        # The first position holds the boundary alone, and would be the same part of every mean.
        mask_BS[:, :1] = mask_BS.sum(1, keepdim=True) == 1
        weights_BS1 = mask_BS.unsqueeze(-1).float()
        mean_BD = (out.last_hidden_state.float() * weights_BS1).sum(1) / weights_BS1.sum(1)
        return mean_BD.cpu().numpy()
