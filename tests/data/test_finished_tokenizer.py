"""Tokenizers made elsewhere: what is found in them, what is added, what is refused, and that no entry moves."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from ava_core.config.tokenizer import TokenizerConfig
from ava_core.data.finished_tokenizer import digest_tokenizer, take_tokenizer
from ava_core.data.tokenizer import (
    CHAT_TOKENS,
    encode_losslessly,
    load_tokenizer,
    read_tokenizer,
    save_tokenizer,
    special_ids,
    train_tokenizer,
)
from ava_core.data.tokenizer_identity import is_extension
from ava_core.errors import AvaError

TEXTS = [
    "ROMEO\n  O, she doth teach",
    " \u00e9 e\u0301 \u00bd \u6f22\u5b57 \U0001f600\t",
    "",
    "<|endoftext|></s><s><|pad|>",
]
DEEPSEEK_END = "<\uff5cend\u2581of\u2581sentence\uff5c>"


def byte_level(text: str, special: list[str], size: int = 300) -> Tokenizer:
    """As GPT-2's: the special tokens come last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return tokenizer


def sentencepiece_like(text: str) -> Tokenizer:
    """As Llama's: `<unk> <s> </s>` first, bytes as a fallback, a space before the text that decoding takes off."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    content["post_processor"] = json.loads(
        processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)]).__getstate__()
    )
    return Tokenizer.from_str(json.dumps(content))


@pytest.fixture
def write(tmp_path):
    """Write a tokenizer, and settings if given, into `tmp_path/source`."""

    def call(tokenizer: Tokenizer | dict, settings: dict | None = None, name: str = "tokenizer.json"):
        folder = tmp_path / "source"
        folder.mkdir(exist_ok=True)
        text = json.dumps(tokenizer) if isinstance(tokenizer, dict) else tokenizer.to_str()
        (folder / name).write_text(text)
        if settings is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return call


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def round_trip(folder, texts=TEXTS):
    """The texts through the tokenizer in `folder`, which must give each back and end none."""
    documents = [(f"text {number}", text) for number, text in enumerate(texts)]
    return list(encode_losslessly(read_tokenizer(folder), documents, special_ids(folder).boundary))


def test_our_own_is_taken_byte_for_byte_with_its_settings(corpus_text, tmp_path, target):
    save_tokenizer(train_tokenizer([corpus_text], TokenizerConfig(vocab_size=400)), tmp_path / "shards" / "tokenizer")
    taken = take_tokenizer(tmp_path / "shards", target)
    assert taken.added == ()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (target / name).read_bytes() == (tmp_path / "shards" / "tokenizer" / name).read_bytes()


@pytest.mark.parametrize(
    ("special", "settings", "boundary", "padding"),
    [
        (["<|endoftext|>"], None, "<|endoftext|>", "<|pad|>"),
        (["<pad>", "</s>"], None, "</s>", "<pad>"),
        ([DEEPSEEK_END], None, DEEPSEEK_END, "<|pad|>"),
        (
            ["<|endoftext|>", "<|im_end|>"],
            {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
            "<|im_end|>",
            "<|endoftext|>",
        ),
        (
            ["[END]", "[FILL]"],
            {"eos_token": {"content": "[END]", "lstrip": False}, "pad_token": "[FILL]"},
            "[END]",
            "[FILL]",
        ),
        (["<|endoftext|>"], {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, "<|endoftext|>", "<|pad|>"),
        (["<begin>"], {"bos_token": "<begin>"}, "<begin>", "<|pad|>"),
        ([], None, "<|endoftext|>", "<|pad|>"),
        ([], {"eos_token": "<end>"}, "<end>", "<|pad|>"),
    ],
)
def test_boundary_and_padding_are_found_or_added_after_the_entries(
    corpus_text, write, target, special, settings, boundary, padding
):
    source = write(byte_level(corpus_text, special), settings)
    before = read_tokenizer(source).get_vocab()
    taken = take_tokenizer(source, target)
    after, loaded = read_tokenizer(target).get_vocab(), load_tokenizer(target)
    assert (taken.boundary, taken.padding) == (boundary, padding) == (loaded.eos_token, loaded.pad_token)
    assert loaded.bos_token == boundary
    assert {name: after[name] for name in before} == before
    assert sorted(after[name] for name in taken.added) == list(range(len(before), len(after)))
    assert {name for name in (boundary, padding) if name not in before} <= set(taken.added)
    assert special_ids(target).vocab_size == len(after)
    assert loaded.decode([after[boundary], after[padding]], skip_special_tokens=True) == ""
    assert is_extension(source, target)
    round_trip(target)


def test_chat_tokens_are_added_where_there_are_none_of_any_kind(corpus_text, write, target):
    def added(special, settings=None):
        return set(take_tokenizer(write(byte_level(corpus_text, special), settings or {}), target).added)

    assert added(["<|endoftext|>"]) == {"<|pad|>", *CHAT_TOKENS}
    assert added(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == {"<|pad|>"}
    assert added(["<|endoftext|>"], {"chat_template": "{{ messages }}"}) == {"<|pad|>"}


def test_chat_template_comes_along_from_either_place(corpus_text, write, target):
    """The file wins over the setting, as for Transformers."""
    source = write(byte_level(corpus_text, ["</s>"]), {"eos_token": "</s>", "chat_template": "older"})
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    take_tokenizer(source, target)
    chat = [{"role": "user", "content": "To be"}]
    assert AutoTokenizer.from_pretrained(source).apply_chat_template(chat, tokenize=False) == "To be"
    assert AutoTokenizer.from_pretrained(target).apply_chat_template(chat, tokenize=False) == "To be"


def test_sentencepiece_like_one_loses_nothing_and_adds_no_token_of_its_own(corpus_text, write, target):
    source = write(sentencepiece_like(corpus_text), {"eos_token": "</s>", "bos_token": "<s>", "pad_token": "<unk>"})
    assert read_tokenizer(source).encode("a").ids[0] == 1
    take_tokenizer(source, target)
    ids, loaded = special_ids(target), load_tokenizer(target)
    assert (ids.boundary, ids.padding, loaded.bos_token_id) == (2, 0, 2)
    assert loaded("To be")["input_ids"] == round_trip(target, ["To be"])[0].tolist()
    round_trip(target, [*TEXTS, "  two spaces before", "\u00a0"])


def test_text_that_a_tokenizer_changes_is_refused_with_the_place(corpus_text, write, target):
    tokenizer = byte_level(corpus_text, ["</s>"])
    tokenizer.normalizer = normalizers.NFKC()
    take_tokenizer(write(tokenizer), target)  # most texts don't change, so it's the text that decides
    with pytest.raises(AvaError, match=r"text 1: .*'the \ufb01nch' becomes 'the finch' at character 4"):
        round_trip(target, ["the finch", "the \ufb01nch"])


def test_text_that_reaches_the_boundary_token_is_refused(corpus_text, write, target):
    vocabulary = [("<unk>", 0.0), ("</s>", -1.0), *((chr(code), -5.0) for code in range(9, 127))]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.decoder = decoders.Fuse()
    take_tokenizer(write(tokenizer), target)
    round_trip(target, ["To be"])
    with pytest.raises(AvaError, match=r"text 0: spells out </s>"):
        round_trip(target, ["To </s> be"])


@pytest.mark.parametrize(("part", "value"), [("normalizer", normalizers.Lowercase()), ("decoder", None)])
def test_one_that_loses_plain_text_is_refused_at_once(corpus_text, write, target, part, value):
    tokenizer = byte_level(corpus_text, ["</s>"])
    setattr(tokenizer, part, value)
    with pytest.raises(AvaError, match="doesn't give back what it encodes: 'To be"):
        take_tokenizer(write(tokenizer), target)
    assert not list(target.iterdir())


def test_framing_that_another_tool_left_cuts_nothing(corpus_text, write, target):
    tokenizer = byte_level(corpus_text, ["<|endoftext|>", "<|pad|>", *CHAT_TOKENS])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=50)
    take_tokenizer(write(tokenizer), target)
    assert [len(tokens) > 5 for tokens in round_trip(target, [corpus_text[:500]])] == [True]
    assert json.loads((target / "tokenizer.json").read_text())["truncation"] is None


def test_ids_with_holes_keep_and_additions_come_after_the_largest(corpus_text, write, target):
    content = json.loads(byte_level(corpus_text, []).to_str())
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary[last] = 301  # 299 is free: `tokenizers` would give a new entry 300, and the one after it 301 again
    taken = take_tokenizer(write(content), target)
    after = read_tokenizer(target).get_vocab()
    assert after[last] == 301
    assert [after[name] for name in taken.added] == list(range(302, 302 + len(taken.added)))
    assert special_ids(target).vocab_size == 302 + len(taken.added) > len(after)
    assert load_tokenizer(target).eos_token_id == 302
    round_trip(target)


def test_added_tokens_that_would_be_renumbered_are_refused(corpus_text, write, target):
    content = json.loads(byte_level(corpus_text, ["</s>"]).to_str())
    content["added_tokens"][0]["id"] = 400
    with pytest.raises(AvaError, match=r"ids have holes: its file gives </s> the id 400, and `tokenizers` reads 300"):
        take_tokenizer(write(content), target)


def test_entries_that_share_an_id_are_refused(corpus_text, write, target):
    content = json.loads(byte_level(corpus_text, ["</s>"]).to_str())
    content["model"]["vocab"]["!"] = content["model"]["vocab"]["a"]
    with pytest.raises(AvaError, match="have the same id"):
        take_tokenizer(write(content), target)


def test_vocabulary_without_room_for_a_boundary_is_refused(corpus_text, write, target, monkeypatch):
    monkeypatch.setitem(take_tokenizer.__globals__["MODEL_SIZES"], "vocab_size", 300)
    with pytest.raises(AvaError, match=r"has no <\|endoftext\|> and no <\|pad\|>.* no room for them"):
        take_tokenizer(write(byte_level(corpus_text, [])), target)


def test_dropout_is_refused(corpus_text, write, target):
    content = json.loads(byte_level(corpus_text, ["</s>"]).to_str())
    content["model"]["dropout"] = 0.1
    with pytest.raises(AvaError, match=r"dropout = 0\.1: would encode a text differently each time"):
        take_tokenizer(write(content), target)


@pytest.mark.parametrize("content", ["", "[]", '{"version": "1.0"}', "To be, or not to be"])
def test_file_that_is_no_tokenizer_is_refused_in_one_line(tmp_path, target, content):
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(AvaError, match=r"tokenizer\.from = .*file\.json: can't be read as a tokenizer") as caught:
        take_tokenizer(tmp_path / "file.json", target)
    assert "\n" not in str(caught.value)


def test_folders_without_a_tokenizer_are_refused_with_the_way_out(tmp_path, target):
    with pytest.raises(AvaError, match="gone: no such file or folder"):
        take_tokenizer(tmp_path / "gone", target)
    with pytest.raises(AvaError, match=r"has no tokenizer\.json: give the folder of a tokenizer, a model or shards"):
        take_tokenizer(target, target)
    (tmp_path / "tokenizer.model").write_bytes(b"spm")
    with pytest.raises(AvaError, match=r"has tokenizer\.model and no tokenizer\.json: write one with Transformers"):
        take_tokenizer(tmp_path, target)


def test_settings_that_are_no_object_are_named(corpus_text, write, target):
    source = write(byte_level(corpus_text, ["</s>"]))
    (source / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(AvaError, match=r"tokenizer_config\.json: is no JSON object"):
        take_tokenizer(source, target)


def test_code_of_the_folder_is_neither_run_nor_named_in_what_is_written(corpus_text, write, target, tmp_path):
    marker = tmp_path / "was-run"
    settings = {
        "tokenizer_class": "EvilTokenizer",
        "auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]},
        "eos_token": "</s>",
    }
    source = write(byte_level(corpus_text, ["</s>"]), settings)
    (source / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass EvilTokenizer: pass\n")
    take_tokenizer(source, target)
    written = json.loads((target / "tokenizer_config.json").read_text())
    assert not marker.exists() and "auto_map" not in written
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert AutoTokenizer.from_pretrained(target).eos_token == "</s>"


def test_digest_is_of_what_is_read_wherever_it_lies(corpus_text, write, tmp_path):
    source = write(byte_level(corpus_text, ["</s>"]), {"eos_token": "</s>"})
    digest = digest_tokenizer(source)
    (source / "README.md").write_text("not read")
    moved = source.rename(tmp_path / "elsewhere")
    assert digest_tokenizer(moved) == digest_tokenizer(moved / "tokenizer.json") == digest
    (moved / "tokenizer_config.json").write_text('{"eos_token": "<s>"}')
    assert digest_tokenizer(moved) != digest
