"""The tokenizer of an imported model: its tokenizer.json as it is, and settings that Transformers and Ava follow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ava_core.data.finished_tokenizer import BOUNDARIES, UNCONVERTED, stated_settings
from ava_core.data.tokenizer import CONFIG_FILE, FILE, load_tokenizer
from ava_core.errors import AvaError
from ava_core.files import write_json
from ava_core.importing.source import CONFIG, GENERATION, read_object


def require_tokenizer(folder: Path) -> None:
    """Refuse a folder without tokenizer.json before anything is read.

    Raises:
        AvaError: there is none; the message says how to get one.
    """
    if (folder / FILE).is_file():
        return
    slow = next((name for name in UNCONVERTED if (folder / name).is_file()), None)
    have = f"only {slow}, which needs the code of its class: " if slow else ""
    raise AvaError(
        f"{folder}: has no {FILE}: {have}load it with Transformers' AutoTokenizer and save it beside the model with"
        " save_pretrained, which writes one"
    )


def import_tokenizer(source: Path, output: Path, context: int, vocab_size: int) -> dict[str, int]:
    """Write tokenizer.json and tokenizer_config.json into `output`; ids of the `bos`, `eos` and `pad` tokens.

    A tokenizer without a token that begins or pads a text has the one that ends it for that, as Ava's own has for the
    beginning: what is padded is masked.

    Raises:
        AvaError: no token ends a text.
        IntegrityError: a file can't be read.
    """
    settings, template = stated_settings(source / FILE, str(source))
    settings.pop("auto_map", None)
    if template is not None:
        settings["chat_template"] = template
    settings |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        # New tokens are appended to the prompt, so a batch of prompts is padded on the left.
        "padding_side": "left",
    }
    shutil.copyfile(source / FILE, output / FILE)
    write_json(output / CONFIG_FILE, settings)
    tokenizer = load_tokenizer(output)
    if tokenizer.eos_token_id is None:
        settings["eos_token"] = _end_of_text(source, tokenizer)
    for name in ("bos_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            settings[name] = settings["eos_token"]
    write_json(output / CONFIG_FILE, settings)
    tokenizer = load_tokenizer(output)
    if len(tokenizer) > vocab_size:
        raise AvaError(
            f"{source / FILE}: has {len(tokenizer)} entries, and the model's vocab_size is {vocab_size}: give the"
            " tokenizer that it was trained with, or resize its embeddings with resize_token_embeddings"
        )
    return {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}


def _end_of_text(source: Path, tokenizer: Any) -> str:
    """The token that the model's own configuration ends a text with, or else one that is there under a name in use."""
    for name in (GENERATION, CONFIG):
        stated = read_object(source / name).get("eos_token_id")
        first = stated[0] if isinstance(stated, list) and stated else stated
        token = tokenizer.convert_ids_to_tokens(first) if isinstance(first, int) else None
        if token is not None:
            return str(token)
    for name in BOUNDARIES:
        if name in tokenizer.get_vocab():
            return name
    raise AvaError(
        f"{source}: neither the tokenizer nor the model names a token that ends a text: set eos_token in {CONFIG_FILE}"
    )
