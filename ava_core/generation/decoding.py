"""Continuing prompts by greedy, beam or nucleus decoding, over Transformers' `generate`."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import GenerationConfig as DecodingConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ava_core.config.schema import GenerationConfig
from ava_core.errors import AvaError
from ava_core.generation.strategies import require_strategy


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    strategy: str,
    settings: GenerationConfig,
    seed: int,
) -> list[str]:
    """Continue each prompt until the end of a document or `settings.max_new_tokens`.

    The prompts are one batch, padded on the left. Greedy and beam don't depend on the seed. Nucleus draws for the
    whole batch from one generator: the same prompts in the same order with the same seed give the same texts, and the
    process's own random state stays as it was. An empty prompt begins a document.

    Args:
        model: as `load_model` gives it.
        tokenizer: of the same folder.
        prompts: texts to continue.
        strategy: "greedy", "beam" or "nucleus".
        settings: length, width of the beam, temperature, top_p and repetition penalty.
        seed: of the sampling.

    Returns:
        Each prompt, unchanged, with its continuation; special tokens are left out.

    Raises:
        ConfigError: an unknown strategy.
        AvaError: a prompt is too long for the model's context.
    """
    require_strategy(strategy)
    if not prompts:
        return []
    token_ids = [_encode(tokenizer, prompt) for prompt in prompts]
    _require_room(model, prompts, token_ids, settings.max_new_tokens)
    batch = tokenizer.pad({"input_ids": token_ids}, padding_side="left", return_tensors="pt").to(model.device)
    config = _decoding_config(tokenizer, strategy, settings)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        sequences = cast(Any, model).generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], generation_config=config
        )
    new_tokens = sequences[:, batch["input_ids"].shape[1] :]
    continuations = tokenizer.batch_decode(new_tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [prompt + continuation for prompt, continuation in zip(prompts, continuations, strict=True)]


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt's tokens; the boundary token for an empty one, since a model has to start from something."""
    return tokenizer(prompt, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]


def _require_room(model: PreTrainedModel, prompts: list[str], token_ids: list[list[int]], new_tokens: int) -> None:
    context = model.config.max_position_embeddings
    for prompt, ids in zip(prompts, token_ids, strict=True):
        if len(ids) + new_tokens > context:
            shown = prompt if len(prompt) <= 32 else f"{prompt[:32]}..."
            raise AvaError(
                f"prompt {shown!r}: {len(ids)} tokens and max_new_tokens = {new_tokens} are more than the model's"
                f" context of {context}: shorten the prompt or ask for {max(context - len(ids), 0)} new tokens at most"
            )


def _decoding_config(tokenizer: PreTrainedTokenizerBase, strategy: str, settings: GenerationConfig) -> DecodingConfig:
    """Everything is said here, so that nothing comes from the folder's generation_config.json."""
    options: dict[str, dict[str, Any]] = {
        "greedy": {"do_sample": False, "num_beams": 1},
        "beam": {"do_sample": False, "num_beams": settings.num_beams, "early_stopping": False, "length_penalty": 1.0},
        "nucleus": {
            "do_sample": True,
            "num_beams": 1,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": 0,  # off; Transformers' own default is 50
        },
    }
    return DecodingConfig(
        max_new_tokens=settings.max_new_tokens,
        repetition_penalty=settings.repetition_penalty,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        **options[strategy],
    )
