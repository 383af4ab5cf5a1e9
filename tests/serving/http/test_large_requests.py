"""Requests that are made to take long: refused by counting, and whatever takes time stands in nobody's way."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ava_core.serving.http.limits import Limits
from tests.serving.http.conftest import CONTEXT, wait_until
from tests.serving.http.test_bad_clients import BODY, HEADERS, post, raw, request_text, works

CHAT = "/v1/chat/completions"
HI = {"role": "user", "content": "hi"}
CONVERSATION = {"model": "ava-test", "messages": [HI], "max_tokens": 1}


def compact(body) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def nested(depth, inner):
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({**BODY, "n": 16, "prompt": [[1]] * 260_000}, "values"),
        ({**BODY, "prompt": [[1]] * 60_000}, "60000 sequences"),
        ({**BODY, "prompt": ["a"] * 60_000}, "60000 sequences"),
        ({**BODY, "n": 16, "prompt": ["a", "b", "c"]}, "48 sequences"),
        ({**BODY, "prompt": [-1] * 300_000}, "300000 tokens"),
        ({**BODY, "prompt": [[1], [2] * 300_000]}, "300000 tokens"),
        ({**BODY, "prompt": [-1] * CONTEXT}, "prompt"),
        ({**BODY, "n": 16, "prompt": "a b" * 300_000}, "900000 characters"),
        ({**CONVERSATION, "messages": [HI] * 20_000}, "messages: 20000"),
        ({**CONVERSATION, "messages": [1] * 300_000}, "values"),
        ({**CONVERSATION, "messages": [{"role": "user", "content": "a b" * 300_000}]}, "900018 characters"),
        ({**BODY, "stop": ["x"] * 200_000}, "values"),
        ({**BODY, "stop": ["x"] * 60_000}, "stop"),
        ({**BODY, "logit_bias": {str(token): 1 for token in range(60_000)}}, "60000 fields"),
        ({**BODY, "metadata": [{"a": [0] * 100}] * 2_000}, "values"),
        ({**BODY, **{f"field{index}": 1 for index in range(50_000)}}, "fields"),
        ({**BODY, "x" * 900_000: 1}, "900000 characters"),
        ({**BODY, "model": "m" * 900_000}, "is not served"),
        ({**BODY, "metadata": nested(500, 1)}, "nested too deeply"),
        (b'{"model": "ava-test", "prompt": "a", "metadata": ' + b"[" * 400_000 + b"]" * 400_000 + b"}", "values"),
        (b'{"model": "ava-test", "prompt": "a", "metadata": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested"),
        (b'{"' + b'\\"' * 200_000 + b"[" * 400_000, "JSON"),
        (b'{"model": "ava-test", "prompt": "a", "max_tokens": ' + b"9" * 5_000 + b"}", "4300 digits"),
        (b'{"model": "ava-test", "prompt": "a", "seed": -' + b"9" * 4_000 + b"}", "seed"),
        (b'{"model": "ava-test", "prompt": "a", "temperature": 1e' + b"9" * 300 + b"}", "temperature"),
    ],
    ids=lambda value: (
        None if isinstance(value, str) else compact(value)[:60].decode() if isinstance(value, dict) else ""
    ),
)
def test_a_body_that_is_too_much_is_refused_before_anything_is_made_of_it(serve, byte_tokenizer, body, says):
    server = serve()
    encoded = []
    server.models.served.tokenizer = _Watched(byte_tokenizer, encoded.append)
    path = CHAT if isinstance(body, dict) and "messages" in body else "/v1/completions"
    status, answer = post(server, body if isinstance(body, bytes) else compact(body), path)
    assert status in (400, 404) and says in answer["error"]["message"]
    assert len(answer["error"]["message"]) < 300
    assert not server.engine.requests and not [text for text in encoded if isinstance(text, str)]
    server.models.served.tokenizer = byte_tokenizer
    assert works(server)


def test_brackets_in_a_text_are_no_values(serve):
    server = serve()
    server.engine.context = 10**6
    prompt = 'say [] and {} and "[" ' * 20_000
    assert post(server, compact({**BODY, "prompt": prompt, "max_tokens": 1}))[0] == 200
    assert len(server.engine.requests[0].prompt_ids) == len(prompt)


class _Watched:
    """A tokenizer that tells of each prompt before it encodes it."""

    def __init__(self, tokenizer, tell):
        self._tokenizer, self._tell = tokenizer, tell

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __len__(self):
        return len(self._tokenizer)

    def __call__(self, text, **options):
        self._tell(text)
        return self._tokenizer(text, **options)

    def apply_chat_template(self, messages, **options):
        self._tell(messages)
        return self._tokenizer.apply_chat_template(messages, **options)


@pytest.fixture
def held(byte_tokenizer):
    """A tokenizer that waits with what holds "slow" until it is let go."""
    let_go = threading.Event()
    tokenizer = _Watched(byte_tokenizer, lambda text: let_go.wait(30) if "slow" in str(text) else None)
    tokenizer.let_go = let_go
    yield tokenizer
    let_go.set()


SLOW = [
    ("/v1/completions", {**BODY, "prompt": "slow", "max_tokens": 1}),
    (CHAT, {**CONVERSATION, "messages": [{"role": "user", "content": "slow"}]}),
]


@pytest.mark.parametrize(("path", "body"), SLOW)
def test_others_are_served_while_a_template_or_an_encoding_takes_its_time(serve, held, path, body):
    server = serve()
    server.models.served.tokenizer = held
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(post, server, body, path)
        time.sleep(0.1)
        stream = raw(server, request_text({**BODY, "max_tokens": 60, "stream": True}))
        received = b""
        while b"[DONE]" not in received:
            received += stream.recv(65536)
        stream.close()
        assert works(server) and not slow.done()
        held.let_go.set()
        assert slow.result()[0] == 200


@pytest.mark.parametrize(("path", "body"), SLOW)
def test_time_in_a_template_and_in_its_queue_counts(serve, held, path, body):
    server = serve(limits=Limits(request_seconds=0.3))
    server.models.served.tokenizer = held
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: post(server, body, path), range(6)))
    assert {status for status, _ in found} == {504} and not server.engine.requests
    held.let_go.set()
    wait_until(lambda: works(server))


def test_a_client_that_leaves_while_its_template_is_rendered_starts_nothing(serve, held):
    server = serve()
    server.models.served.tokenizer = held
    (path, body) = SLOW[1]
    connection = raw(server, request_text(body, path))
    time.sleep(0.1)
    connection.close()
    time.sleep(0.1)
    held.let_go.set()
    assert works(server)
    assert [request.prompt_ids for request in server.engine.requests] == [(ord("a"),)]


def test_too_many_that_wait_for_a_template_are_told_to_come_back(serve, held):
    server = serve(limits=Limits(waiting=2))
    server.models.served.tokenizer = held
    (path, body) = SLOW[1]
    with ThreadPoolExecutor(12) as pool:
        found = [pool.submit(post, server, body, path) for _ in range(12)]
        wait_until(lambda: any(each.done() for each in found))
        assert {each.result()[0] for each in found if each.done()} == {429}
        assert works(server)
        held.let_go.set()
        assert {each.result()[0] for each in found} == {200, 429}


def test_bodies_that_fill_the_memory_are_given_up_oldest_first(serve):
    server = serve(limits=Limits(held_bytes=3_000))
    head = f"POST /v1/completions HTTP/1.1\r\n{HEADERS}Content-Length: 3000\r\n\r\n"
    with raw(server, head + " " * 2_000) as first, raw(server, head + " " * 500) as second:
        time.sleep(0.1)
        data = compact({**BODY, "max_tokens": 1})
        assert post(server, data + b" " * 1_000)[0] == 200
        assert first.recv(100).startswith(b"HTTP/1.1 503")
        second.sendall(data + b" " * (2_500 - len(data)))
        assert second.recv(100).startswith(b"HTTP/1.1 200")
    assert works(server)
