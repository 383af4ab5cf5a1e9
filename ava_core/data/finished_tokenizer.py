"""A finished tokenizer, made elsewhere, taken over as the one of new shards: `tokenizer.from`.

Its entries keep their ids. The tokens that training needs and texts can't spell are found by the names that its own
settings give them, or by names in use; what is missing is added after the last entry. Nothing in its folder is run, and
of its settings only names of tokens and the chat template are taken over.

Settings: https://huggingface.co/docs/transformers/main_classes/tokenizer; tokenizer.json is the format of `tokenizers`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_core.config.limits import MODEL_SIZES
from ava_core.data.tokenizer import (
    BOUNDARY,
    CHAT_TOKENS,
    CONFIG_FILE,
    FILE,
    PADDING,
    token_text,
    vocabulary_size,
    write_settings,
)
from ava_core.errors import AvaError, first_line

log = logging.getLogger(__name__)
NAMES_FILE, TEMPLATE_FILE = "special_tokens_map.json", "chat_template.jinja"
"""Where Transformers keeps, or kept, names of special tokens and the chat template beside tokenizer_config.json."""
READ = (FILE, CONFIG_FILE, NAMES_FILE, TEMPLATE_FILE)
"""All that is read of a folder."""
UNCONVERTED = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")
"""What tokenizers are kept in that have no tokenizer.json."""
BOUNDARIES = (
    BOUNDARY,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<\N{FULLWIDTH VERTICAL LINE}end\u2581of\u2581sentence\N{FULLWIDTH VERTICAL LINE}>",
    "[EOS]",
    "<EOT>",
)
"""Names of a token that ends a document: GPT-2 and many, Llama 3, SentencePiece, Gemma, DeepSeek, and others."""
PADDINGS = (
    PADDING,
    "<|padding|>",
    "<pad>",
    "[PAD]",
    "<|finetune_right_pad_id|>",
    "<\N{FULLWIDTH VERTICAL LINE}\u2581pad\u2581\N{FULLWIDTH VERTICAL LINE}>",
)
CHATS = (
    *CHAT_TOKENS,
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "[INST]",
    "<\N{FULLWIDTH VERTICAL LINE}User\N{FULLWIDTH VERTICAL LINE}>",
)
"""Names of tokens around the messages of a chat: a tokenizer that has one of them gets none of ours."""
SAMPLE = "To be, or  not\n\n\tto be: THAT is the question."


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A tokenizer that was taken over.

    Attributes:
        digest: SHA-256 of the tokenizer.json that the shards get.
        boundary: the token that ends every document.
        padding: the token that fills up batches.
        added: tokens that it hadn't.
    """

    digest: str
    boundary: str
    padding: str
    added: tuple[str, ...]


def find_tokenizer(source: Path) -> Path:
    """The tokenizer.json that `source` stands for: the file itself, of a tokenizer's or a model's folder, or of shards.

    Raises:
        AvaError: there is none.
    """
    for path in (source, source / FILE, source / "tokenizer" / FILE):
        if path.is_file():
            return path
    if not source.is_dir():
        raise AvaError(
            f"tokenizer.from = {source}: no such file or folder: correct it, or --data, which relative paths count from"
        )
    other = next((name for name in UNCONVERTED if (source / name).is_file()), None)
    if other:
        raise AvaError(
            f"tokenizer.from = {source}: has {other} and no {FILE}: write one with Transformers:"
            " AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OTHER)"
        )
    raise AvaError(f"tokenizer.from = {source}: has no {FILE}: give the folder of a tokenizer, a model or shards")


def digest_tokenizer(source: Path) -> str:
    """SHA-256 over all that is read of the tokenizer, wherever it lies; raises as `find_tokenizer`."""
    path = find_tokenizer(source)
    contents = [path.read_bytes(), *(_beside(path, name) for name in READ[1:])]
    return hashlib.sha256(json.dumps([hashlib.sha256(item).hexdigest() for item in contents]).encode()).hexdigest()


def count_entries(source: Path) -> int:
    """Entries of the tokenizer that `source` stands for, with those that `take_tokenizer` adds; raises as that."""
    path = find_tokenizer(source)
    where = f"tokenizer.from = {source}"
    tokenizer, content = _parse(path.read_bytes(), where)
    _require_sound(tokenizer, content, where)
    settings, template = stated_settings(path, where)
    present = tokenizer.get_vocab(with_added_tokens=True)
    boundary, padding, chat = _roles(settings, present, has_template=template is not None)
    return vocabulary_size(tokenizer) + sum(token not in present for token in (boundary, padding, *chat))


def take_tokenizer(source: Path, folder: Path) -> Taken:
    """Write the tokenizer that `source` stands for into `folder`, ready for shards and models.

    tokenizer.json stays as it is, byte for byte, unless a token has to be added or made special, or it would frame,
    pad or truncate what it encodes.

    Args:
        source: as `find_tokenizer` takes it.
        folder: an existing folder.

    Raises:
        AvaError: there is no tokenizer, or it can't be used; the message says why.
    """
    path = find_tokenizer(source)
    where = f"tokenizer.from = {source}"
    original = path.read_bytes()
    tokenizer, content = _parse(original, where)
    _require_sound(tokenizer, content, where)
    settings, template = stated_settings(path, where)
    present = tokenizer.get_vocab(with_added_tokens=True)
    boundary, padding, chat = _roles(settings, present, has_template=template is not None)
    wanted = (boundary, padding, *chat)
    added = tuple(token for token in wanted if token not in present)
    changed = _mend(content, present, wanted, where)
    if tokenizer.num_special_tokens_to_add(is_pair=False):
        content["post_processor"], changed = None, True
    if changed:
        tokenizer, content = _parse(json.dumps(content, ensure_ascii=False).encode(), where)
        _require_sound(tokenizer, content, where)
        tokenizer.save(str(folder / FILE))
    else:
        (folder / FILE).write_bytes(original)
    special = sorted((token["id"], token["content"]) for token in content["added_tokens"] if token["special"])
    write_settings(folder, boundary, padding, [name for _, name in special if name not in wanted[:2]], template)
    digest = hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
    log.info(
        "tokenizer: taken, not learned: %s entries, SHA-256 %s; documents end with %s, batches are padded with %s%s",
        f"{vocabulary_size(tokenizer):,}",
        digest,
        boundary,
        padding,
        f"; added after its entries: {', '.join(added)}" if added else "",
    )
    return Taken(digest=digest, boundary=boundary, padding=padding, added=added)


def _parse(content: bytes, where: str) -> tuple[Any, dict[str, Any]]:
    """The tokenizer, and the JSON object that it is written as."""
    from tokenizers import Tokenizer

    try:
        tokenizer, values = Tokenizer.from_buffer(content), dict(json.loads(content))
    except Exception as error:  # `tokenizers` raises plain Exception for a file that it can't parse
        raise AvaError(
            f"{where}: can't be read as a tokenizer ({first_line(error)}): give a {FILE} as `tokenizers` writes it"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, values


def _require_sound(tokenizer: Any, content: dict[str, Any], where: str) -> None:
    """Refuse one whose ids aren't those of its file, that encodes by chance, or that loses plain text."""
    for token in content["added_tokens"]:
        found = tokenizer.token_to_id(token["content"])
        if found != token["id"]:
            raise AvaError(
                f"{where}: its ids have holes: its file gives {token['content']} the id {token['id']}, and `tokenizers`"
                f" reads {found}: a model's rows would mean other tokens; number the added tokens without holes"
            )
    ids = tokenizer.get_vocab(with_added_tokens=True)
    by_id: dict[int, str] = {}
    for entry, number in ids.items():
        if by_id.setdefault(number, entry) != entry:
            raise AvaError(f"{where}: its entries {by_id[number]!r} and {entry!r} have the same id, {number}")
    if content["model"].get("dropout"):
        raise AvaError(
            f"{where}: dropout = {content['model']['dropout']}: would encode a text differently each time: set it to"
            " null"
        )
    if vocabulary_size(tokenizer) > MODEL_SIZES["vocab_size"]:
        raise AvaError(f"{where}: its largest id is {max(by_id)}: a model takes {MODEL_SIZES['vocab_size']:,} at most")
    decoded = tokenizer.decode(tokenizer.encode(SAMPLE, add_special_tokens=False).ids, skip_special_tokens=False)
    if decoded != SAMPLE:
        raise AvaError(
            f"{where}: doesn't give back what it encodes: {SAMPLE!r} becomes {decoded!r}: bits per byte would be those"
            " of another text; give one that loses nothing, such as byte-level BPE"
        )


def stated_settings(path: Path, where: str) -> tuple[dict[str, Any], Any]:
    """What the files beside a tokenizer.json say of it, and its chat template, None if there is none.

    Raises:
        AvaError: a file is no JSON object; the message begins with `where`.
    """
    settings = {**_object(path, NAMES_FILE, where), **_object(path, CONFIG_FILE, where)}
    template = _beside(path, TEMPLATE_FILE).decode("utf-8", "replace")
    return settings, template or settings.get("chat_template") or None  # as Transformers has it, the file wins


def _roles(
    settings: dict[str, Any], present: dict[str, int], *, has_template: bool
) -> tuple[str, str, tuple[str, ...]]:
    """The boundary, the padding, and the tokens for chats that it must have.

    What settings name comes first, then what is there under a name in use, then ours. Padding differs from the
    boundary, for its row is never trained.
    """
    named = {role: token_text(settings.get(role)) for role in ("eos_token", "bos_token", "pad_token")}
    common = next((name for name in BOUNDARIES if name in present), None)
    boundary = named["eos_token"] or common or named["bos_token"] or BOUNDARY
    paddings = [named["pad_token"], *(name for name in PADDINGS if name in present), PADDING]
    padding = next(name for name in paddings if name and name != boundary)
    chat = () if has_template or any(name in present for name in CHATS) else CHAT_TOKENS
    return boundary, padding, chat


def _mend(content: dict[str, Any], present: dict[str, int], wanted: tuple[str, ...], where: str) -> bool:
    """Make the wanted tokens special entries of `content`, and let nothing of it cut a text; whether that changed it.

    An entry that is there keeps its id. A new one comes after the last; where ids have holes, `tokenizers` would put it
    into one or onto an entry, unless the vocabulary names its id.
    """
    changed = False
    for key in ("truncation", "padding"):
        changed |= content.pop(key, None) is not None
    listed = {token["content"]: token for token in content["added_tokens"]}
    following = max(present.values()) + 1
    has_holes = following != len(present)
    for name in wanted:
        token = listed.get(name)
        if token is None:
            number = present.get(name)
            if number is None:
                number, following = following, following + 1
                if has_holes:
                    content["model"]["vocab"][name] = number
            content["added_tokens"].append(_special(name, number))
        elif token["special"]:
            continue
        else:
            token["special"] = True
        changed = True
    if following > MODEL_SIZES["vocab_size"]:
        raise AvaError(
            f"{where}: has no {' and no '.join(name for name in wanted if name not in present)}, and no room for"
            f" them: a model takes {MODEL_SIZES['vocab_size']:,} entries at most"
        )
    content["added_tokens"].sort(key=lambda token: token["id"])
    return changed


def _special(name: str, number: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": name, **flags, "special": True}


def _beside(path: Path, name: str) -> bytes:
    """A file beside a tokenizer.json; empty if there is none, or if the tokenizer's file has a name of its own."""
    file = path.with_name(name)
    return file.read_bytes() if path.name == FILE and file.is_file() else b""


def _object(path: Path, name: str, where: str) -> dict[str, Any]:
    content = _beside(path, name)
    try:
        return dict(json.loads(content)) if content else {}
    except (ValueError, TypeError) as error:
        raise AvaError(f"{where}: {name}: is no JSON object ({first_line(error)}): mend or remove it") from error
