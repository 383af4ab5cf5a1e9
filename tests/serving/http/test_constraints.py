"""`response_format` and `regex`, as OpenAI's client asks a real model for them."""

import json
import re
from types import SimpleNamespace

import openai
import pytest
from jsonschema import Draft202012Validator

from ava_core.data.tokenizer import load_tokenizer
from ava_core.onnx.session import DecoderSession
from ava_core.serving.engine import Engine
from ava_core.serving.streams import Bridge
from tests.serving.http.conftest import CREATED

SCHEMA = {
    "type": "object",
    "properties": {
        "speaker": {"enum": ["ROMEO", "JULIET"]},
        "lines": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 2},
    },
    "required": ["speaker", "lines"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "line", "schema": SCHEMA, "strict": True}}
ASKED = [{"role": "user", "content": "Who speaks?"}]
PATTERN = r"(ROMEO|JULIET): [a-z ]{3,12}\."


@pytest.fixture
def client(serve, client_of, served_model):
    """Of a server with `served_model`; `engine` is its engine."""
    server = serve()
    tokenizer = load_tokenizer(served_model)
    engine = Engine(DecoderSession.load(served_model, threads=1), tokenizer, Bridge(server.loop).deliver, slots=4)
    server.models.served = SimpleNamespace(
        name="ava-test", version="3", engine=engine, tokenizer=tokenizer, created=CREATED, ends=()
    )
    yield client_of(server)
    engine.close()


def checked(text):
    Draft202012Validator(SCHEMA).validate(json.loads(text))


def test_every_answer_is_valid_by_the_schema_and_ends_with_it(client):
    for seed in range(4):
        answer = client.chat.completions.create(
            model="ava-test", messages=ASKED, response_format=FORMAT, seed=seed, n=4, temperature=1.5, max_tokens=96
        )
        for choice in answer.choices:
            assert choice.finish_reason == "stop"
            checked(choice.message.content)
    greedy = client.chat.completions.create(
        model="ava-test", messages=ASKED, response_format=FORMAT, temperature=0, max_tokens=96
    )
    checked(greedy.choices[0].message.content)


def test_stream_gives_the_text_of_the_whole_answer(client):
    asked = {"model": "ava-test", "messages": ASKED, "response_format": FORMAT, "seed": 5, "max_tokens": 96}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert chunks[-1].choices[0].finish_reason == "stop"
    checked(whole)


def test_answer_at_the_limit_is_cut_and_says_length(client):
    choice = client.chat.completions.create(
        model="ava-test", messages=ASKED, response_format=FORMAT, seed=1, max_tokens=5
    ).choices[0]
    assert choice.finish_reason == "length"
    with pytest.raises(ValueError):
        json.loads(choice.message.content)


def test_object_of_any_kind(client):
    choice = client.chat.completions.create(
        model="ava-test", messages=ASKED, response_format={"type": "json_object"}, seed=2, max_tokens=90
    ).choices[0]
    assert choice.message.content.startswith("{")
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)


def test_completion_matches_a_regular_expression_beside_others_that_do_not(client):
    answer = client.completions.create(
        model="ava-test", prompt=["Enter ", "O"], seed=3, n=2, max_tokens=64, extra_body={"regex": PATTERN}
    )
    assert all(re.fullmatch(PATTERN, choice.text) and choice.finish_reason == "stop" for choice in answer.choices)
    free = client.completions.create(model="ava-test", prompt="Enter ", seed=3, max_tokens=8)
    assert not re.match("ROMEO|JULIET", free.choices[0].text)


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"regex": "a("}, "regex", "regex: unclosed group"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema: must be given"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "strng"}}}},
            "response_format.json_schema.schema",
            "Invalid type: strng",
        ),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, None, "regex: can't stand beside response_format"),
        ({"response_format": {"type": "json_object"}, "stop": ["}"]}, None, "can't stand beside response_format"),
        ({"regex": "a+", "ignore_eos": True}, None, "can't stand beside regex"),
        ({"regex": "a+", "min_tokens": 3}, None, "can't stand beside regex"),
        ({"min_tokens": 17}, "min_tokens", "min_tokens = 17: at most 16 tokens can follow"),
        ({"typical_p": 0}, "typical_p", "greater than 0"),
    ],
    ids=str,
)
def test_what_can_not_be_promised_gets_400_and_a_line(client, body, param, says):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="ava-test", prompt="O", extra_body=body)
    assert error.value.body["param"] == param and says in error.value.body["message"]
    assert "\n" not in error.value.body["message"]


def test_options_of_sampling_reach_the_engine(serve, client_of):
    server = serve()
    given = {"typical_p": 0.5, "epsilon_cutoff": 0.001, "eta_cutoff": 0.002, "no_repeat_ngram_size": 3, "min_tokens": 2}
    client_of(server).completions.create(model="ava-test", prompt="a", max_tokens=3, extra_body=given)
    settings = server.engine.requests[0].settings
    assert {name: getattr(settings, name.replace("min_tokens", "min_new_tokens")) for name in given} == given
