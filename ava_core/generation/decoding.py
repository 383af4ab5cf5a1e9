"""Decoding: continuations of prompts by Transformers' `generate`, for PyTorch and ONNX models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ava_core.config.generation import GenerationConfig
from ava_core.errors import AvaError
from ava_core.generation.callback_streamer import CallbackStreamer
from ava_core.generation.constraints import Constraint, require_free
from ava_core.generation.decoder import Decoder
from ava_core.generation.kept_cache import KeptCache
from ava_core.generation.prompts import encode
from ava_core.generation.strategies import require_strategy, require_streamable, require_texts

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
    constraint: Constraint | None = None,
    num_return_sequences: int = 1,
    show: Callable[[str], None] | None = None,
    token_ids: Sequence[list[int]] | None = None,
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
        constraint: what each continuation must be. One that `settings.max_new_tokens` ends before is the beginning of
            a valid text, and the log says so.
        show: told the continuation of the only prompt piece by piece.
        token_ids: what the model reads for each prompt, where it is more than the prompt.

    Returns:
        Each prompt, unchanged, with its continuations, one text after the other; special tokens and stop strings are
        left out.

    Raises:
        ConfigError: an unknown strategy, several texts or a beam with `show`, more texts than the strategy finds, or
            a constraint with settings that would break it.
        AvaError: a prompt is too long for the model's context, or no text.
    """
    if token_ids is None:
        token_ids = [encode(tokenizer, prompt) for prompt in prompts]
    continuations = continue_prompts(
        model,
        tokenizer,
        prompts,
        token_ids,
        strategy=strategy,
        settings=settings,
        seed=seed,
        constraint=constraint,
        num_return_sequences=num_return_sequences,
        show=show,
    )
    repeated = [prompt for prompt in prompts for _ in range(num_return_sequences)]
    return [prompt + continuation for prompt, continuation in zip(repeated, continuations, strict=True)]


def continue_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    token_ids: Sequence[list[int]],
    *,
    strategy: str,
    settings: GenerationConfig,
    seed: int,
    constraint: Constraint | None = None,
    num_return_sequences: int = 1,
    show: Callable[[str], None] | None = None,
    ends: Sequence[int] = (),
) -> list[str]:
    """The continuations that `generate` makes, of prompts that are tokens already.

    Args:
        model, tokenizer, strategy, settings, seed, constraint, num_return_sequences, show: as for `generate`.
        prompts: what errors call them.
        token_ids: of each prompt, at least one.
        ends: tokens that end a text beside the end of a document.

    Raises:
        ConfigError, AvaError: as `generate`.
    """
    require_strategy(strategy)
    if constraint is not None:
        require_free(settings)
    require_texts(strategy, settings, num_return_sequences)
    if show is not None:
        require_streamable(strategy, len(prompts) * num_return_sequences)
    for prompt, ids in zip(prompts, token_ids, strict=True):
        _require_room(model, prompt, len(ids), settings.max_new_tokens)
    each = num_return_sequences if strategy == "beam" else 1
    rows = [ids for ids in token_ids for _ in range(num_return_sequences // each)]
    seeds = [seed + number for _ in token_ids for number in range(num_return_sequences // each)]
    decoder = Decoder(model, tokenizer, strategy, settings, constraint, each, tuple(ends))
    continuations: list[str] = []
    for batch in _batches(rows, settings.max_new_tokens):
        streamer = CallbackStreamer(tokenizer, settings.stop, show) if show is not None else None
        first = len(continuations) // each
        found = decoder.decode(batch, seeds[first : first + len(batch)], streamer)
        continuations += [continuation.text for continuation in found]
    return continuations


def continue_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    token_ids: list[int],
    *,
    strategy: str,
    settings: GenerationConfig,
    seed: int,
    show: Callable[[str], None],
    ends: Sequence[int] = (),
    kept: KeptCache | None = None,
) -> bool:
    """Continue one sequence of tokens, as `generate` does a prompt.

    Args:
        model, tokenizer, strategy, settings, seed: as for `generate`; any strategy but beam.
        token_ids: at least one; they and the new ones fit into the model's context.
        show: told the text piece by piece.
        ends: tokens that end the text beside the end of a document.
        kept: what the model has read of such a sequence before, and reads from now on.

    Returns:
        Whether the text was cut: it ended at `settings.max_new_tokens`.
    """
    require_strategy(strategy)
    require_streamable(strategy, 1)
    decoder = Decoder(model, tokenizer, strategy, settings, None, 1, tuple(ends), kept)
    [found] = decoder.decode([token_ids], [seed], CallbackStreamer(tokenizer, settings.stop, show))
    return found.cut


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
