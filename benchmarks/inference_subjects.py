"""What `benchmarks.inference` measures, each in a process of its own, as workers of `benchmarks.turns`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig as DecodingConfig

from ava_core.config.generation import GenerationConfig

WARM_UP_TOKENS = 16


class Torch:
    """Our PyTorch model in bfloat16, through Transformers' `generate`."""

    def __init__(self, folder: str, threads: int) -> None:
        from transformers import AutoModelForCausalLM

        import ava_core.models  # noqa: F401  registers the architecture

        torch.set_num_threads(threads)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def decode(self, prompt_tokens: int, new_tokens: int) -> dict[str, float]:
        """Greedy tokens per second of one sequence."""
        return {"rate": _generate(self.model, prompt_tokens, new_tokens)}

    @torch.inference_mode()
    def prefill(self, prompt_tokens: int) -> dict[str, float]:
        """Prompt tokens per second of one sequence, logits of the last one."""
        tokens = _tokens(prompt_tokens, self.model.config.vocab_size)
        started = time.perf_counter()
        self.model(torch.from_numpy(tokens), use_cache=True, logits_to_keep=1)
        return {"rate": prompt_tokens / (time.perf_counter() - started)}


class Onnx:
    """An exported model: the decoder by itself, and behind the serving engine."""

    def __init__(self, folder: str, threads: int) -> None:
        from ava_core.onnx.session import DecoderSession

        torch.set_num_threads(1)
        self.decoder = DecoderSession.load(Path(folder), threads)
        self.folder, self.threads = folder, threads

    def decode(self, prompt_tokens: int, new_tokens: int) -> dict[str, float]:
        """Greedy tokens per second of one sequence."""
        cache = self.decoder.cache(1, prompt_tokens + new_tokens)
        logits = self.decoder.run(_tokens(prompt_tokens, self.decoder.shape.vocab_size), cache)
        started = time.perf_counter()
        for _ in range(new_tokens - 1):
            logits = self.decoder.run(logits.argmax(-1)[:, None], cache)
        return {"rate": (new_tokens - 1) / (time.perf_counter() - started)}

    def prefill(self, prompt_tokens: int) -> dict[str, float]:
        """Prompt tokens per second of one sequence, logits of the last one."""
        tokens = _tokens(prompt_tokens, self.decoder.shape.vocab_size)
        cache = self.decoder.cache(1, prompt_tokens)
        started = time.perf_counter()
        self.decoder.run(tokens, cache)
        return {"rate": prompt_tokens / (time.perf_counter() - started)}

    def serve(self, streams: int, prompt_tokens: int, new_tokens: int) -> dict[str, float]:
        """Tokens per second of so many greedy requests at once, through the engine."""
        import threading

        from ava_core.data.tokenizer import load_tokenizer
        from ava_core.serving.engine import Engine
        from ava_core.serving.requests import Request

        left, done = [streams], threading.Event()

        def deliver(given: list) -> None:
            left[0] -= sum(getattr(delta, "finish_reason", "failed") is not None for _, delta in given)
            if left[0] <= 0:
                done.set()

        engine = Engine(self.decoder, load_tokenizer(Path(self.folder)), deliver, slots=max(streams, 1))
        settings = GenerationConfig(max_new_tokens=new_tokens)
        generator = np.random.default_rng(0)
        started = time.perf_counter()
        for _ in range(streams):
            ids = generator.integers(2, self.decoder.shape.vocab_size, prompt_tokens)
            engine.submit(Request(prompt_ids=tuple(map(int, ids)), strategy="greedy", settings=settings, seed=0))
        done.wait()
        seconds = time.perf_counter() - started
        generated = engine.stats().generated_tokens
        engine.close()
        return {"rate": generated / seconds}


def _generate(model: Any, prompt_tokens: int, new_tokens: int) -> float:
    tokens = torch.from_numpy(_tokens(prompt_tokens, model.config.vocab_size))
    config = DecodingConfig(do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens, pad_token_id=0)
    started = time.perf_counter()
    model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=config)
    return new_tokens / (time.perf_counter() - started)


def _tokens(count: int, vocab_size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(2, vocab_size, (1, count))
