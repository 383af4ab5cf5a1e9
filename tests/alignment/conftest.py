"""Shards with a tokenizer that knows chats, and conversations on them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ava_core.alignment.making import Prepared
from ava_core.alignment.prepare import prepare
from ava_core.alignment.prepare_pairs import prepare_pairs
from ava_core.config.conversations import ConversationsConfig, ConversationSource
from ava_core.config.preferences import PreferencesConfig, PreferenceSource
from ava_core.data.tokenizer import CHAT_TOKENS, FILE
from ava_core.progress import Progress

CHATML = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""After the token that ends a turn comes a line break, as in OpenAI's ChatML and Qwen's."""


def write_rows(path: Path, rows: list) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def shards_in(folder: Path, prepare: Callable[..., Prepared], config: Any, shards: Path, **more: Any) -> Prepared:
    """What `prepare` makes of a section in `folder`, which is emptied, and so is the state beside it."""
    state = folder.with_name(f"{folder.name}.state")
    for each in (folder, state):
        shutil.rmtree(each, ignore_errors=True)
        each.mkdir()
    return prepare(config, shards=shards, data=None, output=folder, state=state, progress=Progress(quiet=True), **more)


def exchange(asked: str, answered: str) -> dict:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}


@pytest.fixture(scope="session")
def chat_shards(tiny_shards, tmp_path_factory) -> Path:
    """The tiny shards, whose tokenizer has got the tokens of chats."""
    from tokenizers import AddedToken, Tokenizer

    folder = tmp_path_factory.mktemp("chat") / "shards"
    shutil.copytree(tiny_shards, folder)
    path = str(folder / "tokenizer" / FILE)
    tokenizer = Tokenizer.from_file(path)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CHAT_TOKENS])
    tokenizer.save(path)
    return folder


@pytest.fixture
def make_conversations(chat_shards, tmp_path):
    """`prepare` of rows or of a configuration; the output is `tmp_path / name`."""

    def make(rows: list | None = None, *, name: str = "conversations", shards: Path = chat_shards, **settings):
        if rows is not None:
            source = ConversationSource(path=str(write_rows(tmp_path / f"{name}.jsonl", rows)))
            settings = {"sources": [source], **settings}
        config = ConversationsConfig(**{"max_tokens": 48, **settings})
        return tmp_path / name, shards_in(tmp_path / name, prepare, config, shards)

    return make


@pytest.fixture(scope="session")
def conversation_shards(chat_shards, tmp_path_factory) -> Path:
    """Conversations with a rule that a tiny model can learn: the answer repeats the question's word, twice."""
    root = tmp_path_factory.mktemp("conversations")
    words = ["king", "queen", "sword", "crown", "night", "grave", "ghost", "blood"]
    rows = [exchange(f"{word} {number}", f"{word} {word}") for number in range(12) for word in words]
    source = ConversationSource(path=str(write_rows(root / "rows.jsonl", rows)))
    output = root / "conversations"
    shards_in(output, prepare, ConversationsConfig(sources=[source], max_tokens=48), chat_shards)
    return output


@pytest.fixture(scope="session")
def pair_shards(chat_shards, tmp_path_factory) -> Path:
    """Pairs with a rule that a tiny model can learn: the better answer repeats the question's word."""
    root = tmp_path_factory.mktemp("pairs")
    words = ["king", "queen", "sword", "crown", "night", "grave", "ghost", "blood"]
    rows = [
        {"prompt": f"{word} {number}", "chosen": f"{word} {word}", "rejected": f"{other} {other}"}
        for number in range(12)
        for word, other in zip(words, words[1:] + words[:1], strict=True)
    ]
    source = PreferenceSource(path=str(write_rows(root / "rows.jsonl", rows)))
    output = root / "preferences"
    config = PreferencesConfig(sources=[source], max_tokens=64)
    shards_in(output, prepare_pairs, config, chat_shards, model=None, seed=0)
    return output
