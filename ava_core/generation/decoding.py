"""Decoding: continuations of prompts by Transformers' `generate`, for PyTorch and ONNX models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig as DecodingConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ava_core.config.generation import GenerationConfig
from ava_core.errors import AvaError
from ava_core.generation.prompts import encode
from ava_core.generation.sampling import SeededDraw, logits_processors
from ava_core.generation.strategies import SAMPLED, require_strategy, require_streamable
from ava_core.generation.text_stream import TextStream

MAX_BATCH_TOKENS = 2**14
"""Prompt and new tokens of one batch, at most; bounds the memory for a long list of prompts."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    strategy: str,
    settings: GenerationConfig,
    seed: int,
    show: Callable[[str], None] | None = None,
) -> list[str]:
    """Continue each prompt until the end of a document, a stop string, or `settings.max_new_tokens`.

    Prompts are decoded in batches, padded on the left, but each has a generator of its own with the same seed: a
    prompt's text doesn't depend on the others, and the process's own random state stays as it was. Greedy and beam
    don't depend on the seed. An empty prompt begins a document.

    Args:
        model: as `load_model` gives it.
        tokenizer: of the same folder.
        prompts: texts to continue.
        strategy: one of `STRATEGIES`.
        settings: lengths, filters and stop strings.
        seed: of the sampling.
        show: told the continuation of the only prompt piece by piece.

    Returns:
        Each prompt, unchanged, with its continuation; special tokens and stop strings are left out.

    Raises:
        ConfigError: an unknown strategy, or several prompts or a beam with `show`.
        AvaError: a prompt is too long for the model's context, or no text.
    """
    require_strategy(strategy)
    if show is not None:
        require_streamable(strategy, len(prompts))
    token_ids = [encode(tokenizer, prompt) for prompt in prompts]
    for prompt, ids in zip(prompts, token_ids, strict=True):
        _require_room(model, prompt, len(ids), settings.max_new_tokens)
    continuations: list[str] = []
    for batch in _batches(token_ids, settings.max_new_tokens):
        streamer = _Show(tokenizer, settings, show) if show is not None else None
        continuations += _decode(model, tokenizer, batch, strategy, settings, seed, streamer)
        if streamer is not None:
            continuations[-1] = streamer.text
    return [prompt + continuation for prompt, continuation in zip(prompts, continuations, strict=True)]


def _require_room(model: PreTrainedModel, prompt: str, length: int, new_tokens: int) -> None:
    context = model.config.max_position_embeddings
    if length + new_tokens > context:
        shown = prompt if len(prompt) <= 32 else f"{prompt[:32]}..."
        raise AvaError(
            f"prompt {shown!r}: {length} tokens and max_new_tokens = {new_tokens} are more than the model's"
            f" context of {context}: shorten the prompt or ask for {max(context - length, 0)} new tokens at most"
        )


def _batches(token_ids: list[list[int]], new_tokens: int) -> list[list[list[int]]]:
    """Consecutive prompts in batches, as many as MAX_BATCH_TOKENS allows with padding."""
    batches: list[list[list[int]]] = []
    longest = 0
    for ids in token_ids:
        longest = max(longest, len(ids))
        if batches and (len(batches[-1]) + 1) * (longest + new_tokens) <= MAX_BATCH_TOKENS:
            batches[-1].append(ids)
        else:
            batches.append([ids])
            longest = len(ids)
    return batches


def _decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    token_ids: list[list[int]],
    strategy: str,
    settings: GenerationConfig,
    seed: int,
    streamer: BaseStreamer | None,
) -> list[str]:
    """Continuations of one batch."""
    batch = tokenizer.pad({"input_ids": token_ids}, padding_side="left", return_tensors="pt").to(model.device)
    processors = logits_processors(strategy, settings)
    if strategy in SAMPLED:
        processors.append(SeededDraw([seed] * len(token_ids)))
    # Not inference_mode: weights that DeepSpeed gathers for the pass of a model in training couldn't be trained on.
    with torch.no_grad():
        sequences = cast(Any, model).generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=_decoding_config(tokenizer, strategy, settings),
            logits_processor=processors,
            streamer=streamer,
            tokenizer=tokenizer if settings.stop else None,
        )
    texts = []
    for row in sequences[:, batch["input_ids"].shape[1] :].tolist():
        stream = TextStream(tokenizer, settings.stop)
        texts.append("".join([*map(stream.push, row), stream.flush()]))
    return texts


def _decoding_config(tokenizer: PreTrainedTokenizerBase, strategy: str, settings: GenerationConfig) -> DecodingConfig:
    """Settings that leave nothing to the folder's generation_config.json; filters of logits are in the processors."""
    beam: dict[str, Any] = {"num_beams": settings.num_beams, "early_stopping": False, "length_penalty": 1.0}
    return DecodingConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        stop_strings=list(settings.stop) or None,
        use_cache=True,
        **(beam if strategy == "beam" else {"num_beams": 1}),
    )


class _Show(BaseStreamer):
    """Passes the text of the only sequence on, piece by piece."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig, show: Callable[[str], None]
    ) -> None:
        self.stream, self.show = TextStream(tokenizer, settings.stop), show
        self.prompt, self.text = True, ""

    def put(self, value: Tensor) -> None:
        """Take the prompt, which comes first and isn't shown, or a token."""
        if self.prompt:
            self.prompt = False
            return
        self._add("".join(map(self.stream.push, value.flatten().tolist())))

    def end(self) -> None:
        """Show what was held back."""
        self._add(self.stream.flush())

    def _add(self, text: str) -> None:
        if text:
            self.text += text
            self.show(text)
