"""The chat template that a tokenizer gets which has none, in its tokenizer_config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ava_core.data.tokenizer import CHAT_TOKENS, CONFIG_FILE, read_settings, read_tokenizer
from ava_core.errors import ConfigError
from ava_core.files import write_json

TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{ '<|assistant|>' }}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{%- elif message['role'] in ('system', 'user') -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{%- else -%}"
    "{{ raise_exception('role ' + message['role'] + ': must be system, user or assistant') }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
"""`generation` marks what Transformers' assistant masks cover: the answer and the token that ends it."""


def give_template(folder: Path) -> None:
    """Give the tokenizer in `folder` the chat template, unless it has one.

    Raises:
        ConfigError: it has neither a template nor the tokens that ours is written with.
    """
    settings = read_settings(folder)
    if settings.get("chat_template"):
        return
    tokenizer: Any = read_tokenizer(folder)
    missing = [token for token in CHAT_TOKENS if tokenizer.token_to_id(token) is None]
    if missing:
        raise ConfigError(
            f"{folder}: the tokenizer has no chat template, and lacks {', '.join(missing)}, which ours is written with:"
            " preprocess the text with tokenizer.from, which adds them"
        )
    write_json(folder / CONFIG_FILE, {**settings, "chat_template": TEMPLATE})
