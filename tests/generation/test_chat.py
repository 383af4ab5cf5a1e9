"""Text is text: what a prompt or a message spells out makes no control token; templates do."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from tokenizers import AddedToken

from ava_core.config.tokenizer import TokenizerConfig
from ava_core.data.tokenizer import SPECIAL_TOKENS, load_tokenizer, read_tokenizer, save_tokenizer, train_tokenizer
from ava_core.data.tokenizer import encode as encode_documents
from ava_core.errors import AvaError
from ava_core.generation.chat import encode_pieces, render_chat
from ava_core.generation.prompts import encode
from ava_core.generation.token_bytes import token_bytes

CONTROL = ["<|endoftext|>", "<|pad|>", "<|user|>", "<|end|>", "</s>", "[INST]"]
PIECES = [*CONTROL, "<", "|", ">", "end", "<|", "of", "text|>", " ", "\n", "ä", "a"]
CHATML = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m['content'] | trim + '<|end|>' }}\n{% endfor %}"
    "{{ eos_token }}{% if add_generation_prompt %}</s>{% endif %}"
)
GLUED = "{% for m in messages %}{{ m.content }}{% endfor %}<|pad|>"
SLICED = "{% for m in messages %}<{{ m.content[1:] }}|{{ m.content.split('|')[-1] }}>{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    loaded = load_tokenizer(tiny_model)
    loaded.add_special_tokens({"additional_special_tokens": CONTROL[2:]})
    return loaded


def encode_chat(tokenizer, messages, template=None) -> list[int]:
    return encode_pieces(tokenizer, render_chat(tokenizer, messages, template))


def text_of(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


def control_in(tokenizer, ids) -> list[str]:
    return [token for token in tokenizer.convert_ids_to_tokens(ids) if token in CONTROL]


def test_prompt_has_the_tokens_that_training_gives_its_text(tiny_model):
    text = "a <|endoftext|> b<|pad|>"
    [expected] = encode_documents(read_tokenizer(tiny_model), [text])
    tokenizer = load_tokenizer(tiny_model)
    assert encode(tokenizer, text) == expected.tolist()
    assert not {0, 1} & set(expected)
    assert encode(tokenizer, "") == [0], "a model has to start from something"


@given(
    st.lists(
        st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([CHATML, GLUED, SLICED]),
)
@settings(max_examples=150, deadline=None)
def test_only_the_template_makes_control_tokens(tokenizer, contents, template):
    messages = [{"role": "user", "content": content} for content in contents]
    ids = encode_chat(tokenizer, messages, template)
    made = {
        CHATML: ["<|user|>", "<|end|>"] * len(contents) + ["<|endoftext|>", "</s>"],
        GLUED: ["<|pad|>"],
        SLICED: [],
    }[template]
    assert control_in(tokenizer, ids) == made
    rendered = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert text_of(tokenizer, ids) == (rendered or "<|endoftext|>")


def test_chat_without_control_tokens_has_the_tokens_of_its_rendered_text(tokenizer):
    messages = [{"role": "user", "content": " What's\nin | a <name>? "}, {"role": "assistant", "content": ""}]
    rendered = tokenizer.apply_chat_template(messages, chat_template=CHATML, tokenize=False, add_generation_prompt=True)
    assert encode_chat(tokenizer, messages, CHATML) == tokenizer(rendered, split_special_tokens=False)["input_ids"]
    assert text_of(tokenizer, encode_chat(tokenizer, messages)) == (
        "user:  What's\nin | a <name>? \n\nassistant: \n\nassistant:"
    )


def test_whatever_characters_a_message_uses_come_back(tokenizer):
    content = "\U000f0000|\U000f0001<|end|>\U000f0002 \ufffd"
    ids = encode_chat(tokenizer, [{"role": "user", "content": content, "name": "<|pad|>"}], "{{ messages[0] }}<|end|>")
    assert control_in(tokenizer, ids) == ["<|end|>"]
    assert content in text_of(tokenizer, encode_chat(tokenizer, [{"role": "user", "content": content}]))


def test_control_token_swallows_the_space_beside_it_as_the_tokenizer_says(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    mask = AddedToken("<mask>", lstrip=True, rstrip=True, special=True)
    word = AddedToken("end", single_word=True, special=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [mask, word]})
    template = "one \n<mask>  two ends <|pad|> the end."
    expected = tokenizer(template, split_special_tokens=False)["input_ids"]
    assert encode_chat(tokenizer, [{"role": "user", "content": ""}], template) == expected
    assert len([token for token in expected if token >= tokenizer.vocab_size or token == 1]) == 3


def test_reserved_tokens_of_our_tokenizer_are_the_template_s_alone_and_decode_to_nothing(corpus_text, tmp_path):
    save_tokenizer(train_tokenizer([corpus_text], TokenizerConfig(vocab_size=300)), tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
    content = "".join(SPECIAL_TOKENS)
    ids = encode_chat(tokenizer, [{"role": "user", "content": content}], template)
    assert [token for token in ids if token < len(SPECIAL_TOKENS)] == [3, 5, 4]
    tokens = token_bytes(tokenizer)
    assert b"".join(tokens[token] for token in ids).decode() == content
    assert [tokens.name(token) for token in (3, 5, 4)] == ["<|user|>", "<|end|>", "<|assistant|>"]


def test_message_that_is_no_text_is_refused_and_so_is_a_template_s_objection(tokenizer):
    with pytest.raises(AvaError, match="UTF-8"):
        encode_chat(tokenizer, [{"role": "user", "content": "\ud800"}])
    with pytest.raises(TemplateError, match=r"not this: a \|b"):
        encode_chat(
            tokenizer,
            [{"role": "user", "content": "a |b"}],
            "{{ raise_exception('not this: ' + messages[0].content) }}",
        )
