"""Whatever the model and the seed, a constrained text is valid, or the beginning of a valid one."""

import json
import logging
import re

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ava_core.config.generation import GenerationConfig
from ava_core.errors import ConfigError
from ava_core.generation.constraints import Constraint, Guide
from ava_core.generation.decoding import generate
from tests.generation.conftest import END, PADDING

V = 260
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "parts": {"type": "array", "items": {"enum": ["König", 'quo"te', None, 1.5]}, "maxItems": 2},
        "next": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "parts", "next"],
    "additionalProperties": False,
}
PATTERN = r"(ay|nay|König)(, (sir|lord)){0,2}[.!]"
SETTINGS = GenerationConfig(max_new_tokens=100, temperature=2.0, top_p=1.0, num_beams=3)


def valid(text):
    value = json.loads(text)
    Draft202012Validator(SCHEMA).validate(value)
    return value


@pytest.mark.parametrize("strategy", ["greedy", "nucleus", "typical", "beam", "contrastive"])
def test_text_is_valid_by_its_schema(either_model, padded_tokenizer, strategy):
    options = {"strategy": strategy, "settings": SETTINGS, "constraint": Constraint.json_schema(SCHEMA)}
    for seed in range(3 if strategy in ("nucleus", "typical") else 1):
        texts = generate(either_model, padded_tokenizer, ["O", "To be"], seed=seed, **options)
        for text, prompt in zip(texts, ["O", "To be"], strict=True):
            valid(text.removeprefix(prompt))


@pytest.mark.parametrize("strategy", ["greedy", "nucleus", "beam", "contrastive"])
def test_text_matches_its_regular_expression(either_model, padded_tokenizer, strategy):
    options = {"strategy": strategy, "settings": SETTINGS, "constraint": Constraint.regex(PATTERN)}
    texts = generate(either_model, padded_tokenizer, ["O"] * 3, seed=4, **options)
    assert all(re.fullmatch(PATTERN, text[1:]) for text in texts)


def test_groups_of_beams_match_too(either_model, padded_tokenizer):
    settings = SETTINGS.model_copy(update={"num_beams": 4, "num_beam_groups": 2})
    options = {"strategy": "beam", "settings": settings, "constraint": Constraint.regex(PATTERN)}
    texts = generate(either_model, padded_tokenizer, ["O"], seed=0, num_return_sequences=2, **options)
    assert len(texts) == 2 and all(re.fullmatch(PATTERN, text[1:]) for text in texts)


def test_text_that_the_limit_cuts_is_a_beginning_and_the_log_says_so(byte_model, padded_tokenizer, caplog):
    settings = SETTINGS.model_copy(update={"max_new_tokens": 7})
    options = {"strategy": "nucleus", "settings": settings, "constraint": Constraint.json_schema(SCHEMA)}
    with caplog.at_level(logging.WARNING):
        [text] = generate(byte_model, padded_tokenizer, ["O"], seed=1, **options)
    assert text[1:].replace(" ", "").startswith('{"nam')
    assert "1 of 1 texts ended at max_new_tokens before they were what they must be" in caplog.text


def test_whole_text_is_no_reason_for_a_warning(byte_model, padded_tokenizer, caplog):
    options = {"strategy": "nucleus", "settings": SETTINGS, "constraint": Constraint.regex("(ab)+|x")}
    with caplog.at_level(logging.WARNING):
        generate(byte_model, padded_tokenizer, ["O"] * 4, seed=1, **options)
    assert caplog.text == ""


def test_batch_and_stream_are_as_alone(byte_model, padded_tokenizer):
    options = {"strategy": "nucleus", "settings": SETTINGS, "constraint": Constraint.json_schema(SCHEMA), "seed": 3}
    together = generate(byte_model, padded_tokenizer, ["O", "To be", "Enter"], **options)
    shown = []
    [streamed] = generate(byte_model, padded_tokenizer, ["To be"], show=shown.append, **options)
    assert together[1] == streamed == "To be" + "".join(shown)


@st.composite
def walks(draw):
    schema = draw(
        st.sampled_from(
            [
                SCHEMA,
                {"type": "object"},
                {"type": "array", "items": {"type": "number", "multipleOf": 0.5}, "minItems": 1},
                {"type": "string", "pattern": "^[a-c]+$", "minLength": 2},
                {"type": "string", "format": "date"},
                {"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}}},
                {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1},
                {"oneOf": [{"type": "integer"}, {"const": "x"}]},
            ]
        )
    )
    return schema, draw(st.lists(st.integers(0, 2**16), min_size=80, max_size=80))


@given(walks())
@examples(max_examples=60)
def test_end_may_come_only_after_valid_json(padded_tokenizer, walk):
    """Any allowed tokens in a row: whenever the end is among them, the text is valid as it is."""
    schema, choices = walk
    guide, text = Guide(Constraint.json_schema(schema), padded_tokenizer, V), b""
    assert not guide.allowed_V[PADDING:].any()
    for choice in choices:
        if guide.allowed_V[END] or guide.complete:
            Draft202012Validator(schema).validate(json.loads(text))
        if guide.complete:
            break
        allowed = [token for token in guide.allowed_V.nonzero()[0].tolist() if token != END]
        assert allowed, "a text that can't go on is complete"
        token = allowed[choice % len(allowed)]
        guide.accept(token)
        text += bytes([token])


def test_guide_refuses_what_it_doesn_t_allow_and_forks_are_independent(padded_tokenizer):
    guide = Guide(Constraint.regex("ab|ac"), padded_tokenizer, V)
    with pytest.raises(ValueError, match="token 98: isn't allowed here"):
        guide.accept(ord("b"))
    guide.accept(ord("a"))
    twin = guide.fork()
    guide.accept(ord("b"))
    assert guide.complete and not twin.complete and twin.allowed_V.nonzero()[0].tolist() == [ord("b"), ord("c")]


@pytest.mark.parametrize(
    ("make", "given", "says"),
    [
        (Constraint.json_schema, "{", "must be a JSON object: EOF"),
        (Constraint.json_schema, "[]", "must be a JSON object"),
        (Constraint.json_schema, {"type": "strng"}, "Invalid type: strng"),
        (Constraint.json_schema, {"type": "array", "uniqueItems": True}, "Unimplemented keys"),
        (Constraint.json_schema, {"x-guidance": {"lenient": True}, "uniqueItems": True}, "Unimplemented keys"),
        (Constraint.json_schema, {"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable schema"),
        (Constraint.json_schema, {"$ref": "http://127.0.0.1:9/schema"}, "does not fetch"),
        (Constraint.json_schema, {"oneOf": [{"type": "string"}, {"minLength": 3}]}, "oneOf"),
        (Constraint.regex, "a(", "unclosed group"),
        (Constraint.regex, "(?=a)b", "look-around"),
        (Constraint.regex, r"(a)\1", "backreferences are not supported"),
        (Constraint.regex, "\ud800", "isn't valid UTF-8"),
    ],
    ids=str,
)
def test_what_can_not_be_promised_is_refused_in_one_line(make, given, says):
    with pytest.raises(ConfigError, match=re.escape(says)) as error:
        make(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", [{"stop": ["x"]}, {"min_new_tokens": 3}, {"no_repeat_ngram_size": 2}], ids=str)
def test_setting_that_would_break_a_constraint_is_refused(byte_model, padded_tokenizer, setting):
    with pytest.raises(ConfigError, match="can't stand beside a constraint"):
        generate(
            byte_model,
            padded_tokenizer,
            ["O"],
            strategy="greedy",
            settings=GenerationConfig(**setting),
            seed=0,
            constraint=Constraint.regex("a+"),
        )
