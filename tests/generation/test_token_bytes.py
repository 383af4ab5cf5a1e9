"""What a token adds to a text, and what it is called."""

from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from ava_core.data.tokenizer import load_tokenizer
from ava_core.generation.prompts import encode
from ava_core.generation.token_bytes import token_bytes

TEXT = "O e\u0301 👩\u200d🚀 ß \u2026 To be"


def test_bytes_of_a_text_s_tokens_are_the_text(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    ids = encode(tokenizer, TEXT)
    parts = [token_bytes(tokenizer)[token] for token in ids]
    assert b"".join(parts) == TEXT.encode()
    assert all(parts)


def test_names_are_openai_s_and_differ(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    tokens = token_bytes(tokenizer)
    assert [tokens.name(token) for token in encode(tokenizer, "\u2026")] == [
        r"bytes:\xe2",
        r"bytes:\x80",
        r"bytes:\xa6",
    ]
    assert [tokens.name(token) for token in encode(tokenizer, " be")] == [" be"]
    assert (tokens.name(0), tokens[0]) == ("<|endoftext|>", b"")
    assert (tokens.name(10**6), tokens[10**6]) == ("token_id:1000000", b"")
    assert len({tokens.name(token) for token in range(len(tokenizer))}) == len(tokenizer)


def test_added_tokens_are_text_unless_they_are_special(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.add_tokens([AddedToken("héllo …", special=False), AddedToken("<x>", special=True)])
    plain, special = tokenizer.convert_tokens_to_ids(["héllo …", "<x>"])
    assert token_bytes(tokenizer)[plain].decode() == tokenizer.decode([plain]) == "héllo …"
    assert token_bytes(tokenizer)[special] == b""


def test_a_vocabulary_of_sentencepiece_has_bytes_too():
    vocabulary = {"<s>": 0, "\u2581To": 1, "\u2581é": 2, "<0xE2>": 3, "<0x80>": 4, "<0xA6>": 5}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>")
    ids = [1, 2, 3, 4, 5, 0]
    assert b"".join(token_bytes(tokenizer)[token] for token in ids).decode() == tokenizer.decode(
        ids, skip_special_tokens=True
    )
