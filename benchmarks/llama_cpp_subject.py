"""llama.cpp, for `benchmarks.llama_cpp`: runs where llama-cpp-python is installed, and imports nothing of ours.

The C interface is called as it is: the high-level class copies all logits of a prompt into an array of its own.
"""

from __future__ import annotations

import time
from typing import Any

import llama_cpp
import numpy as np

QUANTIZATIONS = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}


class LlamaCpp:
    """One GGUF file."""

    def __init__(self, file: str, threads: int, context: int) -> None:
        self.model = llama_cpp.Llama(
            file, n_ctx=context, n_batch=context, n_ubatch=context, n_threads=threads, n_threads_batch=threads,
            flash_attn=True, verbose=False,
        )  # fmt: skip
        self.context = self.model.ctx
        self.vocab_size = self.model.n_vocab()

    def quantize(self, file: str, output: str, kind: str) -> None:
        """Write a quantised copy of a GGUF file."""
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = QUANTIZATIONS[kind]
        if llama_cpp.llama_model_quantize(file.encode(), output.encode(), params):
            raise ValueError(f"{file}: llama.cpp couldn't quantise it to {kind}")

    def logits(self, tokens: list[int]) -> dict[str, list[float]]:
        """Logits of the last token of a prompt."""
        self._forget()
        return {"logits": self._decode(np.asarray(tokens, dtype=np.int32)).tolist()}

    def decode(self, prompt_tokens: int, new_tokens: int) -> dict[str, float]:
        """Greedy tokens per second of one sequence."""
        self._forget()
        logits = self._decode(self._prompt(prompt_tokens))
        started = time.perf_counter()
        for _ in range(new_tokens - 1):
            logits = self._decode(np.asarray([logits.argmax()], dtype=np.int32))
        return {"rate": (new_tokens - 1) / (time.perf_counter() - started)}

    def prefill(self, prompt_tokens: int) -> dict[str, float]:
        """Prompt tokens per second of one sequence, logits of the last one."""
        self._forget()
        tokens = self._prompt(prompt_tokens)
        started = time.perf_counter()
        self._decode(tokens)
        return {"rate": prompt_tokens / (time.perf_counter() - started)}

    def _prompt(self, count: int) -> np.ndarray:
        return np.random.default_rng(0).integers(2, self.vocab_size, count).astype(np.int32)

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def _decode(self, tokens: np.ndarray) -> np.ndarray:
        pointer: Any = tokens.ctypes.data_as(llama_cpp.llama_token_p)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(pointer, len(tokens))):
            raise ValueError("llama_decode failed")
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, -1), shape=(self.vocab_size,))
