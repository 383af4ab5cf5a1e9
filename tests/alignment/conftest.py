"""Shards with a tokenizer that knows chats, and conversations on them."""

import json
import shutil
from pathlib import Path

import pytest

from ava_core.alignment.prepare import prepare
from ava_core.alignment.prepare_pairs import prepare_pairs
from ava_core.config.conversations import ConversationsConfig, ConversationSource
from ava_core.config.preferences import PreferencesConfig, PreferenceSource
from ava_core.data.tokenizer import CHAT_TOKENS, FILE
from ava_core.progress import Progress


def write_rows(path: Path, rows: list) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


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
        output, state = tmp_path / name, tmp_path / f"{name}.state"
        for folder in (output, state):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        config = ConversationsConfig(**{"max_tokens": 48, **settings})
        made = prepare(config, shards=shards, data=None, output=output, state=state, progress=Progress(quiet=True))
        return output, made

    return make


@pytest.fixture(scope="session")
def conversation_shards(chat_shards, tmp_path_factory) -> Path:
    """Conversations with a rule that a tiny model can learn: the answer repeats the question's word, twice."""
    root = tmp_path_factory.mktemp("conversations")
    words = ["king", "queen", "sword", "crown", "night", "grave", "ghost", "blood"]
    rows = [exchange(f"{word} {number}", f"{word} {word}") for number in range(12) for word in words]
    source = ConversationSource(path=str(write_rows(root / "rows.jsonl", rows)))
    output, state = root / "conversations", root / "state"
    for folder in (output, state):
        folder.mkdir()
    prepare(
        ConversationsConfig(sources=[source], max_tokens=48),
        shards=chat_shards,
        data=None,
        output=output,
        state=state,
        progress=Progress(quiet=True),
    )
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
    output, state = root / "preferences", root / "state"
    for folder in (output, state):
        folder.mkdir()
    prepare_pairs(
        PreferencesConfig(sources=[source], max_tokens=64),
        shards=chat_shards,
        data=None,
        model=None,
        seed=0,
        output=output,
        state=state,
        progress=Progress(quiet=True),
    )
    return output
