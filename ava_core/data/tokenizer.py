"""Byte-level BPE: trained on the training split only, stored so that Transformers loads it.

Every text has tokens, and decoding gives its bytes back; there is no unknown token and no added space. Token 0 ends a
document (and begins and ends a sequence), token 1 pads batches. Further special tokens are reserved: a fine-tuned
model needs tokens that no text can spell, and an entry that is added later would change the shape of its matrices.
Pretraining never sees them. A tokenizer that was made elsewhere (`finished_tokenizer`) has others: which ones a folder
holds is told by `special_ids`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ava_core.config.tokenizer import TokenizerConfig
from ava_core.errors import AvaError, IntegrityError, first_line
from ava_core.files import write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from ava_core.data.shards import ShardedSplit


BOUNDARY = "<|endoftext|>"
PADDING = "<|pad|>"
CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
"""Who speaks in what follows, and the end of a message."""
SPARE_TOKENS = tuple(f"<|reserved_{number}|>" for number in range(8))
SPECIAL_TOKENS = (BOUNDARY, PADDING, *CHAT_TOKENS, *SPARE_TOKENS)
"""By their ids."""
FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
BATCH_CHARACTERS = 8 * 2**20
"""Characters of text that are encoded at once: enough to use all threads, little enough to bound the memory."""


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Learn byte-level BPE merges (Sennrich et al. 2016, over bytes as in GPT-2).

    Args:
        texts: the training split.
        config: the section `tokenizer`. A text with too few pairs of `min_frequency` gives fewer
            entries than asked for.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / FILE))
    write_settings(folder, BOUNDARY, PADDING, [*CHAT_TOKENS, *SPARE_TOKENS])


def write_settings(
    folder: Path, boundary: str, padding: str, others: Sequence[str], chat_template: object = None
) -> None:
    """Write tokenizer_config.json into `folder`: what Transformers has to know beside tokenizer.json.

    Args:
        folder: where tokenizer.json lies.
        boundary: the token that ends every document; so it is what a document begins after, and `bos_token` too.
        padding: the token that fills up batches.
        others: the further special tokens, by their ids.
        chat_template: as Transformers has it; None: the tokenizer has none.
    """
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": boundary,
        "eos_token": boundary,
        "pad_token": padding,
        # The name that Transformers 4 and 5 both know.
        "additional_special_tokens": list(others),
        # New tokens are appended to the prompt, so a batch of prompts is padded on the left.
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    write_json(
        folder / CONFIG_FILE, settings if chat_template is None else {**settings, "chat_template": chat_template}
    )


def copy_tokenizer(source: Path, folder: Path, context: int) -> None:
    """Copy the tokenizer in `source` to a model's folder, where `model_max_length` is the model's context, in tokens.

    Transformers truncates to it, and not at all where the file doesn't say it. `auto_map` stays behind with the code
    that it names: llama.cpp's converter would run it. Raises as `read_settings` does.
    """
    settings = read_settings(source) | {"model_max_length": context}
    settings.pop("auto_map", None)
    shutil.copyfile(source / FILE, folder / FILE)
    write_json(folder / CONFIG_FILE, settings)


def read_settings(folder: Path) -> dict[str, Any]:
    """What tokenizer_config.json in `folder` says.

    Raises:
        AvaError: a file of the tokenizer is missing.
        IntegrityError: it is no JSON object.
    """
    for name in (FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise AvaError(f"{folder / name}: no such file: restore the folder, or run the step that made it again")
    try:
        return dict(json.loads((folder / CONFIG_FILE).read_text()))
    except (ValueError, TypeError) as error:
        raise _broken(folder / CONFIG_FILE, error) from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder`: of a model, or the folder `tokenizer` of shards.

    Raises:
        AvaError: a file is missing.
        IntegrityError: a file can't be understood.
    """
    read_settings(folder)
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # `tokenizers` raises plain Exception for a file that it can't parse
        raise _broken(folder / FILE, error) from error


def decode_documents(split: ShardedSplit, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each document of a split, without the boundary token that ends it."""
    starts = split.document_starts.tolist()
    ends = [*starts[1:], split.num_tokens]
    return tokenizer.batch_decode(
        [split.tokens[start : end - 1].astype("int64").tolist() for start, end in zip(starts, ends, strict=True)],
        clean_up_tokenization_spaces=False,
    )


def read_tokenizer(folder: Path) -> Tokenizer:
    """The bare tokenizer in `folder`, as `encode` wants it; raises as `load_tokenizer` does."""
    from tokenizers import Tokenizer

    path = folder / FILE
    if not path.is_file():
        raise AvaError(f"{path}: no such file: restore the folder, or run the step that made it again")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        raise _broken(path, error) from error


@dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """What of a tokenizer a model and shards are made for.

    Attributes:
        boundary: the token that ends every document.
        padding: the token that fills up batches.
        vocab_size: one more than the largest id; more than there are entries, where ids have holes.
    """

    boundary: int
    padding: int
    vocab_size: int


def special_ids(folder: Path) -> SpecialIds:
    """The ids that tokenizer_config.json in `folder` names, and the size that every token is below.

    Raises:
        AvaError: a file is missing, or there is no boundary or padding token.
        IntegrityError: a file can't be understood.
    """
    settings, tokenizer = read_settings(folder), read_tokenizer(folder)
    found = {}
    for role in ("eos_token", "pad_token"):
        token = token_text(settings.get(role))
        number = tokenizer.token_to_id(token) if token else None
        if number is None:
            raise AvaError(
                f"{folder / CONFIG_FILE}: {role} = {token}: is no entry of {FILE}: run `ava preprocess` again"
            )
        found[role] = number
    return SpecialIds(boundary=found["eos_token"], padding=found["pad_token"], vocab_size=vocabulary_size(tokenizer))


def token_text(value: Any) -> str | None:
    """A token as settings name it: by its text, or as an object that also says how it is matched; None: no token."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def encode(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """The tokens of each text, int64, without boundary tokens.

    A text that spells a special token out gets the tokens of its characters: no text can end its own document. What a
    file says of truncation and padding, as other tools leave it there, isn't followed.
    """
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield from _encode_batch(tokenizer, batch)
            batch, size = [], 0
    yield from _encode_batch(tokenizer, batch)


def encode_losslessly(
    tokenizer: Tokenizer, documents: Iterable[tuple[str, str]], boundary: int
) -> Iterator[np.ndarray]:
    """As `encode`, for a tokenizer that may lose something: each document's tokens give back its very text.

    Else bits per byte would be those of another, poorer text.

    Args:
        tokenizer: of any kind.
        documents: name and text of each.
        boundary: the token that ends a document, and must not be in one.

    Raises:
        AvaError: a document doesn't come back, or holds the boundary token; names it and the place.
    """
    pairs, again = tee(documents)
    for (name, text), tokens in zip(pairs, encode(tokenizer, (text for _, text in again)), strict=True):
        decoded = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        if decoded != text:
            raise AvaError(f"{name}: the tokenizer doesn't give its text back: {_difference(text, decoded)}")
        if (tokens == boundary).any():
            token = tokenizer.id_to_token(boundary)
            raise AvaError(f"{name}: spells out {token}, which this tokenizer then takes for the end of a document")
        yield tokens


def _difference(text: str, decoded: str) -> str:
    """Where two texts begin to differ, with what follows there."""
    start = next((i for i, pair in enumerate(zip(text, decoded, strict=False)) if pair[0] != pair[1]), None)
    start = min(len(text), len(decoded)) if start is None else start
    shown = [repr(part[max(0, start - 8) : start + 12]) for part in (text, decoded)]
    return f"{shown[0]} becomes {shown[1]} at character {start:,}"


def _encode_batch(tokenizer: Tokenizer, batch: list[str]) -> Iterator[np.ndarray]:
    for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
        yield np.asarray(encoding.ids, dtype=np.int64)


def _broken(path: Path, error: Exception) -> IntegrityError:
    reason = first_line(error)
    return IntegrityError(
        f"{path}: can't be read as a tokenizer ({reason}): restore the folder, or run the step that made it again"
    )
