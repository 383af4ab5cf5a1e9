"""Shards in another model's tokens: the same text, to the byte, or a refusal by name."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from ava_core.config.tokenizer import TokenizerConfig
from ava_core.data.reencoding import open_text, open_tokens, read_documents
from ava_core.data.shards import ShardedSplit, document_names
from ava_core.data.tokenizer import read_tokenizer, save_tokenizer, train_tokenizer
from ava_core.errors import AvaError, IntegrityError


@pytest.fixture(scope="module")
def other_tokenizer(corpus_text, tmp_path_factory):
    """Of a model that was trained on other shards."""
    folder = tmp_path_factory.mktemp("model")
    save_tokenizer(train_tokenizer([corpus_text[::-1]], TokenizerConfig(vocab_size=600)), folder)
    return folder


def test_own_tokens_are_handed_through(tiny_model, tiny_shards):
    text, split = open_text(tiny_model, tiny_shards, "test"), ShardedSplit.open(tiny_shards, "test")
    assert not text.reencoded and np.array_equal(text.split.tokens, split.tokens)
    assert "".join(text.documents).encode() == "".join(read_documents(split, tiny_shards / "tokenizer")).encode()
    assert len("".join(text.documents).encode()) == split.num_bytes


def test_decoded_split_is_the_text_that_was_tokenised(tiny_shards, corpus_text):
    parts = [corpus_text[start : start + 4_000] for start in range(0, len(corpus_text), 4_000)]
    assert read_documents(ShardedSplit.open(tiny_shards, "test"), tiny_shards / "tokenizer") == parts[9::10]


def test_other_tokens_are_the_same_documents_and_bytes(other_tokenizer, tiny_shards):
    before, text = ShardedSplit.open(tiny_shards, "test"), open_text(other_tokenizer, tiny_shards, "test")
    after, tokenizer = text.split, read_tokenizer(other_tokenizer)
    assert text.reencoded and after.tokens.max() < after.vocab_size == 600
    assert (after.num_bytes, after.num_documents) == (before.num_bytes, before.num_documents)
    assert (after.tokens == 0).sum() == after.num_documents
    starts = [*after.document_starts.tolist(), after.num_tokens]
    for start, end, document in zip(starts, starts[1:], text.documents, strict=False):
        assert tokenizer.decode(after.tokens[start : end - 1].tolist(), skip_special_tokens=False) == document
    assert np.array_equal(open_tokens(other_tokenizer, tiny_shards, "test").tokens, after.tokens)
    assert not after.tokens.flags.writeable


def test_same_entries_with_another_boundary_are_encoded_anew(tiny_model, tiny_shards, tmp_path):
    folder = shutil.copytree(tiny_shards / "tokenizer", tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|pad|>"}))
    text = open_text(folder, tiny_shards, "test")
    assert text.reencoded and text.split.boundary_token_id == 1
    expected = ShardedSplit.open(tiny_shards, "test").tokens.astype(int)
    assert np.array_equal(text.split.tokens, np.where(expected == 0, 1, expected))


def test_tokenizer_that_loses_some_of_the_text_is_refused(other_tokenizer, tiny_shards, tmp_path):
    folder = shutil.copytree(other_tokenizer, tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(AvaError, match=r"document 1 of the test split: the tokenizer doesn't give its text back"):
        open_text(folder, tiny_shards, "test")


def test_tokenizer_without_a_boundary_is_refused(other_tokenizer, tiny_shards, tmp_path):
    folder = shutil.copytree(other_tokenizer, tmp_path / "model")
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(AvaError, match="its tokenizer names no eos_token, which ends a document"):
        open_tokens(folder, tiny_shards, "test")


def test_wrong_count_of_bytes_is_refused(tiny_shards):
    split = ShardedSplit.open(tiny_shards, "test")
    wrong = dataclasses.replace(split, num_bytes=split.num_bytes + 1)
    with pytest.raises(IntegrityError, match="bits per byte would be wrong"):
        read_documents(wrong, tiny_shards / "tokenizer")


def test_documents_are_named_in_their_order(tiny_shards):
    names = document_names(tiny_shards, "test")
    assert names == [f"test-{number}" for number in range(ShardedSplit.open(tiny_shards, "test").num_documents)]
