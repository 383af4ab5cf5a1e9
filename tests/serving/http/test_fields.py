"""The API's fields: all of the official client's are known, neutral values are taken, others are refused by name."""

import json
from typing import get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import chat, completion_create_params
from openai.types.chat import chat_completion
from openai.types.chat import completion_create_params as chat_create_params

from ava_core.serving.http.answers import Answer, Choice
from ava_core.serving.http.bodies import parse
from ava_core.serving.http.errors import HttpError
from ava_core.serving.http.limits import Limits
from ava_core.serving.http.neutral import Neutral
from ava_core.serving.http.protocol import ChatRequest, CompletionRequest, Message, Part, StreamOptions

ASKED = {"role": "user", "content": "a"}
CHAT = {"model": "m", "messages": [ASKED]}
COMPLETION = {"model": "m", "prompt": "a"}
MESSAGE_TYPES = [
    chat.ChatCompletionDeveloperMessageParam,
    chat.ChatCompletionSystemMessageParam,
    chat.ChatCompletionUserMessageParam,
    chat.ChatCompletionAssistantMessageParam,
    chat.ChatCompletionToolMessageParam,
    chat.ChatCompletionFunctionMessageParam,
]
OURS_OF_THEIRS = [
    (ChatRequest, chat_create_params.CompletionCreateParamsNonStreaming),
    (ChatRequest, chat_create_params.CompletionCreateParamsStreaming),
    (CompletionRequest, completion_create_params.CompletionCreateParamsNonStreaming),
    (CompletionRequest, completion_create_params.CompletionCreateParamsStreaming),
    (StreamOptions, chat.ChatCompletionStreamOptionsParam),
    (Part, chat.ChatCompletionContentPartTextParam),
    *((Message, kind) for kind in MESSAGE_TYPES),
]


def read(body, kind=None):
    kind = kind or (ChatRequest if "messages" in body else CompletionRequest)
    return parse(json.dumps(body).encode(), kind, Limits(), context=10**6)


def refusal(body, kind=None) -> HttpError:
    with pytest.raises(HttpError) as caught:
        read(body, kind)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(("ours", "theirs"), OURS_OF_THEIRS, ids=lambda kind: kind.__name__)
def test_every_parameter_of_the_official_client_is_known(ours, theirs):
    assert set(get_type_hints(theirs)) - set(ours.model_fields) == set()


def test_every_field_of_an_answer_s_message_is_known():
    assert set(chat.ChatCompletionMessage.model_fields) - set(Message.model_fields) == set()


@pytest.mark.parametrize(("ours", "theirs"), OURS_OF_THEIRS, ids=lambda kind: kind.__name__)
def test_null_is_the_same_as_absent(ours, theirs):
    absent = dict.fromkeys(get_type_hints(theirs))
    if ours in (ChatRequest, CompletionRequest):
        body = CHAT if ours is ChatRequest else COMPLETION
        assert read({**absent, **body}, ours) == read(body, ours)
    else:
        required = {Part: {"type": "text", "text": "a"}, Message: {"role": "assistant"}, StreamOptions: {}}[ours]
        assert ours.model_validate({**absent, **required}) == ours.model_validate(required)


@pytest.mark.parametrize(
    "changes",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"parallel_tool_calls": True},
        {"functions": [], "function_call": "auto"},
        {"response_format": {"type": "text"}},
        {"store": False},
        {"metadata": {"run": "7"}},
        {"reasoning_effort": "none"},
        {"verbosity": "medium"},
        {"service_tier": "auto"},
        {"service_tier": "default"},
        {"modalities": ["text"]},
        {"max_tokens": 5, "max_completion_tokens": 5},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}},
        {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h"},
        {"top_logprobs": 0},
        {"stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"stop": []},
        {"messages": [{"role": "developer", "content": "be brief"}, ASKED]},
        {"messages": [{**ASKED, "name": "Ann"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": None}]}]},
        {"messages": [ASKED, {"role": "assistant", "content": None, "refusal": None, "tool_calls": []}, ASKED]},
        {"messages": [ASKED, {"role": "assistant", "content": "b", "annotations": [], "audio": None}, ASKED]},
        {"messages": [ASKED, {"role": "assistant", "content": "b", "provider_specific_fields": {"x": [1]}}, ASKED]},
    ],
    ids=str,
)
def test_values_that_ask_for_nothing_are_taken(changes):
    assert isinstance(read({**CHAT, **changes}), ChatRequest)


@pytest.mark.parametrize(
    "changes", [{"best_of": 1}, {"n": 3, "best_of": 3}, {"suffix": ""}, {"logit_bias": {}}], ids=str
)
def test_values_of_a_completion_that_ask_for_nothing_are_taken(changes):
    assert isinstance(read({**COMPLETION, **changes}), CompletionRequest)


def neutral_fields():
    for kind in (ChatRequest, CompletionRequest, StreamOptions, Message):
        for name, field in kind.model_fields.items():
            if any(isinstance(mark, Neutral) for mark in field.metadata):
                yield pytest.param(kind, name, id=f"{kind.__name__}.{name}")


@pytest.mark.parametrize(("kind", "name"), neutral_fields())
@pytest.mark.parametrize("value", [{"x": 1}, [{"type": "function"}], "high", 1.5, True], ids=str)
def test_any_other_value_is_refused_with_the_way_out(kind, name, value):
    if kind is Message:
        error = refusal({**CHAT, "messages": [{**ASKED, name: value}]})
        assert error.param == f"messages.0.{name}"
    elif kind is StreamOptions:
        error = refusal({**CHAT, "stream_options": {name: value}})
        assert error.param == f"stream_options.{name}"
    else:
        error = refusal({**(CHAT if kind is ChatRequest else COMPLETION), name: value}, kind)
        assert error.param == name
    assert error.param in error.message and "isn't supported: " in error.message


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({**COMPLETION, "stop": ["a"] * 5}, "stop: at most 4 strings, not 5"),
        ({**COMPLETION, "stop": ""}, "stop = '': must not hold an empty string"),
        ({**COMPLETION, "stop": [1]}, "stop: must be a string or a list of strings"),
        ({**COMPLETION, "prompt": [[5], [-1]]}, "prompt: token -1: must be >= 0"),
        ({**COMPLETION, "prompt": []}, "prompt: must be a string, a list of strings"),
        ({**COMPLETION, "n": 2, "best_of": 4}, "best_of = 4: must be n, 2 here"),
        ({"prompt": "a"}, "model: must be given"),
        ({**CHAT, "max_tokens": 4, "max_completion_tokens": 5}, "max_tokens = 4 and max_completion_tokens = 5"),
        ({**CHAT, "temprature": 1}, "temprature: is no field of this request: did you mean temperature?"),
        ({**CHAT, "messages": ["a"]}, "messages.0 = 'a': must be a JSON object"),
        ({**CHAT, "messages": [{"role": "user"}]}, "messages.0: content: must be given in a message of the user"),
        ({**CHAT, "messages": [{"content": "a"}]}, "messages.0.role: must be given"),
        ({**CHAT, "messages": [{**ASKED, "content": []}]}, "messages.0.content: must be a string or a list of parts"),
        ({**CHAT, "messages": [{**ASKED, "content": 5}]}, "messages.0.content = 5: must be a string or a list of"),
        (
            {**CHAT, "messages": [{**ASKED, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.type = 'image_url': must be text",
        ),
        ({**CHAT, "messages": [{**ASKED, "mood": "sad"}]}, "messages.0.mood: is no field of this request"),
        (
            {**CHAT, "messages": [{"role": "tool", "content": "a", "tool_call_id": "x"}]},
            "messages.0.role = 'tool': isn't supported: this model calls no tools",
        ),
        ({**CHAT, "top_logprobs": 3}, "top_logprobs: needs logprobs = true"),
        ({**CHAT, "stream_options": {"include_usage": 1}}, "stream_options.include_usage = 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_real_fault_is_named(body, says):
    assert refusal(body).message.startswith(says)


def test_what_is_no_unicode_can_stand_in_an_error():
    body = {**CHAT, "messages": [{"role": "user", "content": [{"type": "\ud800", "text": "a"}]}]}
    assert json.loads(refusal(body).response().body)["error"]["param"] == "messages.0.content.0.type"
    assert HttpError(400, "\ud800", param="\udfff").response().status_code == 400


@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=3), how=st.sampled_from(["raw", "set", "all", "dict"]))
@settings(max_examples=100, deadline=None)
def test_each_answer_is_a_valid_next_request(byte_tokenizer, texts, how):
    """As the raw JSON has it, or as the official client's object sends it or writes it with all its nulls."""
    messages = [dict(ASKED)]
    for text in texts:
        answer = Answer("m", chat=True, prompt_tokens=1, tokenizer=byte_tokenizer)
        whole = json.loads(json.dumps(answer.whole([Choice(text=text, tokens=1, finish_reason="stop")])))
        said = chat_completion.ChatCompletion.model_validate(whole).choices[0].message
        messages.append(
            {
                "raw": whole["choices"][0]["message"],
                "set": said.model_dump(exclude_unset=True, mode="json"),
                "all": said.model_dump(),
                "dict": dict(said),
            }[how]
        )
        messages.append(dict(ASKED))
    body = read({**CHAT, "messages": messages})
    assert [message.plain()["content"] for message in body.messages[1::2]] == texts


def test_a_conversation_goes_on_with_the_client_s_own_objects(serve, client_of):
    server = serve(chat_template="{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    client = client_of(server)
    messages = [{"role": "user", "content": "U"}]
    for _ in range(3):
        answer = client.chat.completions.create(model="ava-test", messages=messages, max_completion_tokens=2)
        messages += [answer.choices[0].message, {"role": "user", "content": "V"}]
    assert bytes(server.engine.requests[-1].prompt_ids) == b"<user>U" + b"<assistant>ab ab <user>V" * 2
