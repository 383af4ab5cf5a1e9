"""Which tokenizers give a text the same ids, and which hold another's."""

import json

import pytest
from transformers import AutoTokenizer

from ava_core.config.tokenizer import TokenizerConfig
from ava_core.data.tokenizer import read_tokenizer, save_tokenizer, train_tokenizer
from ava_core.data.tokenizer_identity import gives_same_ids, is_extension, require_extension
from ava_core.errors import AvaError, ConfigError


@pytest.fixture(scope="module")
def folder(corpus_text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer([corpus_text], TokenizerConfig(vocab_size=400)), folder)
    return folder


def _changed(folder, target, change):
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    target.mkdir(parents=True, exist_ok=True)
    (target / "tokenizer.json").write_text(json.dumps(content))
    return target


def test_file_that_transformers_wrote_again_gives_the_same_ids(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer(["a", "longer"], padding=True, truncation=True, max_length=7)
    tokenizer.save_pretrained(tmp_path)
    written = (tmp_path / "tokenizer.json").read_bytes()
    assert written != (folder / "tokenizer.json").read_bytes() and json.loads(written)["truncation"]
    assert gives_same_ids(folder, tmp_path) and gives_same_ids(tmp_path, folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["model"]["merges"].pop(),
        lambda content: content.update(normalizer={"type": "Lowercase"}),
        lambda content: content["pre_tokenizer"].update(use_regex=False),
        lambda content: content["model"]["vocab"].update(
            a=content["model"]["vocab"]["b"], b=content["model"]["vocab"]["a"]
        ),
    ],
    ids=["merge", "normalizer", "pre-tokenizer", "renumbered"],
)
def test_other_rules_or_ids_are_another_tokenizer(folder, tmp_path, change):
    other = _changed(folder, tmp_path / "shards" / "tokenizer", change)
    assert not gives_same_ids(folder, other) and not is_extension(folder, other)
    with pytest.raises(ConfigError, match=r"their tokenizer is not that of .*tokenizer\.from="):
        require_extension(folder, tmp_path / "shards")


def test_entries_added_after_the_others_are_an_extension_one_way(folder, tmp_path):
    grown = read_tokenizer(folder)
    grown.add_special_tokens(["<|tool|>"])
    grown.save(str(tmp_path / "tokenizer.json"))
    assert is_extension(folder, tmp_path) and not is_extension(tmp_path, folder)
    assert not gives_same_ids(folder, tmp_path)


def test_missing_tokenizer_is_named(folder, tmp_path):
    with pytest.raises(AvaError, match=r"tokenizer\.json: no such file"):
        gives_same_ids(folder, tmp_path)
