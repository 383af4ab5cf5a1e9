"""A model's tokenizer, and prompts as tokens."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ava_core.errors import AvaError, IntegrityError

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`.

    Raises:
        AvaError: there is none.
        IntegrityError: it can't be read.
    """
    for name in TOKENIZER:
        if not (folder / name).is_file():
            raise AvaError(f"{folder}: has no {name}: give the output folder of `ava train` or `ava quantize`")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises what its parsers raise, bare Exception included
        raise unreadable(folder / TOKENIZER[0], error) from error


def unreadable(path: Path, error: Exception) -> IntegrityError:
    """The error for a file that a library can't read, or only by running code that lies beside it."""
    if "trust_remote_code" in str(error):
        return IntegrityError(
            f"{path}: asks for code of its own to be run (auto_map): Ava runs none: give a model of Ava's or of an"
            " architecture that Transformers knows"
        )
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return IntegrityError(f"{path}: can't be read ({reason}): restore the folder or run its step again")


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt's tokens; the boundary token for an empty one, since a model has to start from something.

    Text is text, as in the training data: a special token that is spelt out gives the tokens of its characters.

    Raises:
        AvaError: the prompt is no valid Unicode, as an argument in another encoding is not.
    """
    return encode_text(tokenizer, prompt) or [tokenizer.eos_token_id]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """As `encode`, but no text has no tokens."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AvaError(f"prompt {text[:32]!a}: isn't valid UTF-8 at character {error.start}") from error
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
