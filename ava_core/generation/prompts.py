"""Prompts as tokens."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ava_core.errors import AvaError


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt's tokens; the boundary token for an empty one, since a model needs at least one input.

    As in the training data, text that spells a special token out gives the tokens of its characters.

    Raises:
        AvaError: the prompt is no valid Unicode, as an argument in another encoding is not.
    """
    return encode_text(tokenizer, prompt) or [tokenizer.eos_token_id]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """As `encode`, but an empty text has no tokens."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AvaError(f"prompt {text[:32]!a}: isn't valid UTF-8 at character {error.start}") from error
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
