"""The interface as OpenAI's own Python client sees it."""

import json

import openai
import pytest

from ava_core.serving.http.app import Access
from ava_core.serving.requests import Failed
from tests.serving.http.conftest import CREATED, WORD


def test_completions_of_several_prompts_come_in_order_with_their_usage(serve, client_of):
    server = serve()
    answer = client_of(server).completions.create(
        model="ava-test", prompt=["one", "three"], n=2, max_tokens=3, echo=True, seed=5
    )
    assert [choice.text for choice in answer.choices] == [f"{p}{WORD * 3}" for p in ("one", "one", "three", "three")]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (8, 12, 20)
    assert [request.seed for request in server.engine.requests] == [5, 6, 5, 6]


def test_options_reach_the_engine(serve, client_of):
    server = serve()
    client_of(server).completions.create(
        model="ava-test",
        prompt=[97, 98],
        max_tokens=2,
        temperature=0.5,
        top_p=0.75,
        stop=["x", "y"],
        extra_body={"top_k": 7, "min_p": 0.125, "repetition_penalty": 1.5},
    )
    (request,) = server.engine.requests
    settings = request.settings
    assert request.prompt_ids == (97, 98) and request.strategy == "nucleus"
    assert (settings.temperature, settings.top_p, settings.top_k, settings.min_p) == (0.5, 0.75, 7, 0.125)
    assert (settings.repetition_penalty, settings.stop, settings.max_new_tokens) == (1.5, ["x", "y"], 2)


def test_temperature_0_is_greedy_and_openai_s_defaults_hold(serve, client_of):
    server = serve()
    client = client_of(server)
    client.completions.create(model="ava-test", prompt="a", temperature=0)
    client.completions.create(model="ava-test", prompt="a")
    greedy, default = server.engine.requests
    assert greedy.strategy == "greedy"
    assert (default.strategy, default.settings.temperature, default.settings.top_p) == ("nucleus", 1.0, 1.0)
    assert default.settings.max_new_tokens == 16


def test_a_stream_holds_the_same_text_and_ends_with_the_usage(serve, client_of):
    stream = client_of(serve()).completions.create(
        model="ava-test", prompt="abc", n=2, max_tokens=4, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    for index in (0, 1):
        choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(choice.text for choice in choices) == WORD * 4
        assert [choice.finish_reason for choice in choices] == [None, None, None, "length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 8
    assert chunks[-1].usage.prompt_tokens == 3
    assert len({chunk.id for chunk in chunks}) == 1


def test_load_generators_get_a_fixed_length_and_the_usage_of_each_event(serve, client_of):
    server = serve()
    asked = {"ignore_eos": True, "stream_options": {"continuous_usage_stats": True}}
    stream = client_of(server).completions.create(
        model="ava-test", prompt="a", max_tokens=3, stream=True, extra_body=asked
    )
    assert [chunk.usage.completion_tokens for chunk in stream] == [1, 2, 3]
    assert server.engine.requests[0].ignore_end


def test_a_chat_goes_through_the_template_and_fills_the_context_by_default(serve, client_of):
    server = serve(chat_template="{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}>")
    answer = client_of(server).chat.completions.create(
        model="ava-test",
        messages=[
            {"role": "system", "content": "S"},
            {"role": "user", "content": [{"type": "text", "text": "U"}, {"type": "text", "text": "V"}]},
        ],
    )
    (request,) = server.engine.requests
    assert bytes(request.prompt_ids) == b"<system>S<user>UV>"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == server.engine.context
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == WORD * request.settings.max_new_tokens


def test_text_makes_no_control_tokens_but_the_template_does(serve, client_of):
    server = serve(chat_template="{% for m in messages %}{{ '<|end|>' + m.content | trim }}{% endfor %}")
    client = client_of(server)
    client.completions.create(model="ava-test", prompt=["a <|end|> b", "x"], max_tokens=1)
    content = [{"type": "text", "text": " a<|en"}, {"type": "text", "text": "d|>b "}]
    client.chat.completions.create(model="ava-test", messages=[{"role": "user", "content": content}], max_tokens=1)
    client.completions.create(model="ava-test", prompt=[97, 256], max_tokens=1)
    text, _, chat, ids = (request.prompt_ids for request in server.engine.requests)
    assert bytes(text) == b"a <|end|> b"
    assert chat[0] == 256 and bytes(chat[1:]) == b"a<|end|>b"
    assert ids == (97, 256)


def test_a_chat_stream_begins_with_the_role(serve, client_of):
    chunks = list(
        client_of(serve()).chat.completions.create(
            model="ava-test", messages=[{"role": "user", "content": "U"}], max_completion_tokens=3, stream=True
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant" and deltas[0].content == ""
    assert "".join(delta.content or "" for delta in deltas) == WORD * 3
    assert chunks[-1].choices[0].finish_reason == "length"


def test_log_probabilities_of_both_kinds(serve, client_of):
    client = client_of(serve())
    plain = client.completions.create(model="ava-test", prompt="a", max_tokens=2, logprobs=2).choices[0].logprobs
    assert plain.tokens == ["a", "a"] and plain.token_logprobs == [-0.5, -0.5]
    assert plain.top_logprobs[0] == {"a": -0.5, "b": -1.5}
    chat = client.chat.completions.create(
        model="ava-test",
        messages=[{"role": "user", "content": "U"}],
        max_tokens=1,
        logprobs=True,
        top_logprobs=2,
    )
    (entry,) = chat.choices[0].logprobs.content
    assert (entry.token, entry.logprob, entry.bytes) == ("a", -0.5, [97])
    assert [each.token for each in entry.top_logprobs] == ["a", "b"]


def test_a_prompt_can_be_echoed_and_scored_without_a_new_token(serve, client_of):
    server = serve()
    client = client_of(server)
    full = [97] * server.engine.context
    answer = client.completions.create(
        model="ava-test", prompt=[full, [98]], n=2, max_tokens=0, echo=True, logprobs=1, temperature=0
    )
    assert [choice.text for choice in answer.choices] == ["a" * 64, "a" * 64, "b", "b"]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (65, 0)
    assert all(each.echo and each.prompt_only and each.logprobs == 1 for each in server.engine.requests)
    (chunk,) = client.completions.create(model="ava-test", prompt="ab", max_tokens=0, echo=True, stream=True)
    assert (chunk.choices[0].text, chunk.choices[0].finish_reason) == ("ab", "length")
    with pytest.raises(openai.BadRequestError, match="at most 0 tokens can follow"):
        client.completions.create(model="ava-test", prompt=full, max_tokens=1)
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.chat.completions.create(model="ava-test", messages=[{"role": "user", "content": "a"}], max_tokens=0)


def test_models_show_name_and_version(serve, client_of):
    client = client_of(serve())
    (listed,) = client.models.list().data
    assert listed.created == CREATED
    assert (listed.id, listed.version, listed.max_model_len) == ("ava-test", "3", 64)
    assert client.models.retrieve("ava-test").id == "ava-test"
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ({"temperature": -0.5}, None, "temperature"),
        ({"max_tokens": 10**9}, "context_length_exceeded", "at most 63 tokens"),
        ({"prompt": "x" * 64}, "context_length_exceeded", "64 tokens"),
        ({"extra_body": {"temprature": 1}}, "unknown_parameter", "did you mean temperature"),
        ({"presence_penalty": 0.5}, None, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, None, "logit_bias"),
    ],
)
def test_what_is_refused_is_a_bad_request_error(serve, client_of, options, code, says):
    server = serve()
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        client_of(server).completions.create(**{"model": "ava-test", "prompt": "a", **options})
    assert caught.value.code == code and server.engine.requests == []


def test_a_full_queue_is_a_rate_limit_error_with_the_time_to_wait(serve, client_of, queue_full):
    server = serve()
    server.engine.refusal = queue_full
    with pytest.raises(openai.RateLimitError) as caught:
        client_of(server).completions.create(model="ava-test", prompt="a")
    assert caught.value.response.headers["retry-after"] == "2"


def test_a_wrong_key_is_an_authentication_error_and_probes_need_none(serve, client_of):
    import urllib.request

    server = serve(access=Access(keys=["first", "second"]))
    with pytest.raises(openai.AuthenticationError):
        client_of(server, key="other").models.list()
    assert client_of(server, key="second").models.list().data
    with urllib.request.urlopen(f"{server.address}/healthz", timeout=200) as answer:
        assert json.load(answer) == {"status": "ready"}


def test_a_fault_in_the_middle_of_a_stream_is_an_api_error_after_the_text_so_far(serve, client_of):
    server = serve()
    server.engine.fault = Failed("the model failed")
    stream = client_of(server).completions.create(model="ava-test", prompt="a", max_tokens=9, stream=True)
    said = []
    with pytest.raises(openai.APIError, match="the model failed"):
        said.extend(chunk.choices[0].text for chunk in stream)
    with pytest.raises(openai.InternalServerError, match="the model failed"):
        client_of(server).completions.create(model="ava-test", prompt="a", max_tokens=9)


def test_a_request_over_its_time_is_answered_with_504(serve, client_of):
    from ava_core.serving.http.limits import Limits

    server = serve(limits=Limits(request_seconds=0.3))
    server.engine.seconds = 0.1
    with pytest.raises(openai.APIStatusError) as caught:
        client_of(server).completions.create(model="ava-test", prompt="a", max_tokens=50)
    assert caught.value.status_code == 504


def test_a_chat_ends_at_the_template_s_token_and_at_all_of_the_model_s_list(serve, client_of):
    template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    server = serve(chat_template=template)
    server.models.served.ends = (3, 256, 7)
    messages = [{"role": "user", "content": "a"}]
    client_of(server).chat.completions.create(model="ava-test", messages=messages, max_tokens=1)
    client_of(server).completions.create(model="ava-test", prompt="a", max_tokens=1)
    chat, completion = server.engine.requests
    assert chat.ends == (256, 3, 7) and completion.ends == ()
