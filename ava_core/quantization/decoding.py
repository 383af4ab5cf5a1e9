"""Tokens per second of greedy decoding, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

PROMPT_TOKENS = 16
NEW_TOKENS = 48
REPEATS = 3


def decode_rates(models: Sequence[Any], prompt: Tensor) -> list[float]:
    """New tokens per second of each model for one sequence: the median of `REPEATS` runs after one to warm up.

    The models take turns, so that other load on the machine meets them alike. An end-of-text token doesn't stop a
    run, so all of them do the same number of steps.

    Args:
        models: models with Transformers' `generate`.
        prompt: (1, S), int64.
    """
    settings = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        pad_token_id=0,  # any: nothing is padded, and without one a warning is printed
        use_cache=True,
    )
    seconds: list[list[float]] = [[] for _ in models]
    for repeat in range(REPEATS + 1):
        for model, times in zip(models, seconds, strict=True):
            started = time.perf_counter()
            model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
            if repeat:
                times.append(time.perf_counter() - started)
    return [NEW_TOKENS / median(times) for times in seconds]
