"""The tokenizer: nothing is lost, no text ends its own document, the same text gives the same file."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoTokenizer

from ava_core.config.tokenizer import TokenizerConfig
from ava_core.data.tokenizer import (
    CHAT_TOKENS,
    SPECIAL_TOKENS,
    copy_tokenizer,
    encode,
    load_tokenizer,
    read_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from ava_core.errors import AvaError, IntegrityError


@pytest.fixture(scope="module")
def trained(corpus_text):
    return train_tokenizer([corpus_text], TokenizerConfig(vocab_size=500))


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(trained, folder)
    return folder


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200) | st.lists(st.sampled_from([*SPECIAL_TOKENS, *"<|>end_ "]), max_size=20).map("".join))
def test_decoding_gives_the_text_back(trained, text):
    tokens = next(iter(encode(trained, [text])))
    assert trained.decode(tokens.tolist(), skip_special_tokens=False) == text
    assert not set(tokens.tolist()) & set(range(len(SPECIAL_TOKENS)))


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_text_that_spells_a_special_token_out_is_its_characters(trained, token):
    tokens = next(iter(encode(trained, [f"Exit {token} Enter"])))
    assert SPECIAL_TOKENS.index(token) not in tokens
    assert trained.decode(tokens.tolist()) == f"Exit {token} Enter"


def test_smallest_vocabulary_holds_the_bytes_and_the_special_tokens(corpus_text):
    size = 256 + len(SPECIAL_TOKENS)
    smallest = train_tokenizer([corpus_text], TokenizerConfig(vocab_size=size))
    assert [smallest.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert smallest.get_vocab_size() == size
    with pytest.raises(ValidationError):
        TokenizerConfig(vocab_size=size - 1)


def test_texts_come_back_one_by_one_across_batches(trained, monkeypatch):
    monkeypatch.setattr("ava_core.data.tokenizer.BATCH_CHARACTERS", 10)
    texts = ["", "ROMEO", "O, she doth teach the torches", "x"]
    assert [trained.decode(tokens.tolist()) for tokens in encode(trained, texts)] == texts


def test_transformers_loads_it_with_its_special_tokens(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    assert tokenizer.decode(tokenizer("ROMEO\nO, she doth").input_ids) == "ROMEO\nO, she doth"
    assert tokenizer.all_special_tokens == list(SPECIAL_TOKENS)
    reserved = tokenizer.convert_tokens_to_ids([*CHAT_TOKENS, "<|reserved_7|>"])
    assert reserved == [2, 3, 4, 5, 13]
    assert tokenizer.decode([*reserved, 300], skip_special_tokens=True) == tokenizer.decode([300])
    assert load_tokenizer(folder).get_vocab() == tokenizer.get_vocab()
    assert len(tokenizer) == 500


def test_trained_text_needs_fewer_tokens_than_bytes(trained, corpus_text):
    assert len(next(iter(encode(trained, [corpus_text])))) < 0.6 * len(corpus_text.encode())


TRAIN = """
import sys
from pathlib import Path
from ava_core.config.tokenizer import TokenizerConfig
from ava_core.data.tokenizer import save_tokenizer, train_tokenizer
text = Path(sys.argv[1]).read_text()
texts = [text[start : start + 2000] for start in range(0, len(text), 2000)]
save_tokenizer(train_tokenizer(texts, TokenizerConfig(vocab_size=700)), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_another_process_with_other_threads_and_hash_seed_writes_the_same_bytes(tmp_path, corpus_text):
    (tmp_path / "text").write_text(corpus_text)
    written = []
    for threads, seed in (("1", "1"), ("2", "2"), ("3", "3")):
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", TRAIN, str(tmp_path / "text"), str(tmp_path / threads)]
        subprocess.run(command, check=True, env=environment)
        written.append([path.read_bytes() for path in sorted((tmp_path / threads).iterdir())])
    assert written[0] == written[1] == written[2]


def test_more_entries_than_the_text_has_pairs_gives_a_smaller_tokenizer():
    assert 270 < train_tokenizer(["to be or not to be, to be"], TokenizerConfig(vocab_size=5000)).get_vocab_size() < 300


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_missing_file_is_named(folder, tmp_path, name):
    for path in folder.iterdir():
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(AvaError, match=f"{name}: no such file"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"version": ', b"\xff\xfe"])
def test_broken_file_is_named_in_one_line(folder, tmp_path, content):
    (tmp_path / "tokenizer_config.json").write_bytes((folder / "tokenizer_config.json").read_bytes())
    (tmp_path / "tokenizer.json").write_bytes(content)
    for load in (load_tokenizer, read_tokenizer):
        with pytest.raises(IntegrityError, match=r"tokenizer\.json: can't be read as a tokenizer") as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


def test_copy_for_a_model_truncates_to_its_context_and_keeps_the_rest(folder, tmp_path):
    copy_tokenizer(folder, tmp_path, 40)
    found, original = AutoTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(folder)
    text = "All the world's a stage. " * 50
    assert found(text)["input_ids"] == original(text)["input_ids"]
    assert found(text, truncation=True)["input_ids"] == original(text)["input_ids"][:40]
    assert (found.padding_side, found.pad_token) == (original.padding_side, original.pad_token)


@pytest.mark.parametrize("content", ["[1, 2]", "{", '"text"'])
def test_settings_that_are_no_object_are_refused_by_name(folder, tmp_path, content):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(IntegrityError, match=r"tokenizer_config\.json: can't be read as a tokenizer"):
        copy_tokenizer(tmp_path, tmp_path / "gone", 40)
