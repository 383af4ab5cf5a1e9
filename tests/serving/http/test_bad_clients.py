"""Clients that send nonsense, leave, or stop reading: a clear answer where there can be one, and the server goes on."""

import json
import socket
import time
import urllib.error
import urllib.request

import pytest

from ava_core.serving.http import connections
from ava_core.serving.http.limits import Limits
from tests.serving.http.conftest import wait_until

HEADERS = "Host: localhost\r\nContent-Type: application/json\r\n"


def post(server, body, path="/v1/completions"):
    """Status and parsed answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.address + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=200) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def works(server):
    """Whether an ordinary request is served."""
    return post(server, {"model": "ava-test", "prompt": "a", "max_tokens": 1})[0] == 200


def raw(server, text):
    """A connection that has sent this."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=200)
    connection.sendall(text.encode())
    return connection


def request_text(body, path="/v1/completions"):
    data = json.dumps(body)
    return f"POST {path} HTTP/1.1\r\n{HEADERS}Content-Length: {len(data)}\r\n\r\n{data}"


BODY = {"model": "ava-test", "prompt": "a"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\xff{}", "UTF-8"),
        (b"{", "JSON"),
        (b"", "JSON"),
        (b"[" * 10_000, "nested"),
        (b"[]", "JSON object"),
        ({**BODY, "temperature": "1"}, "temperature"),
        ({**BODY, "temperature": float("nan")}, "temperature"),
        ({**BODY, "n": True}, "n = True"),
        ({**BODY, "stream": "yes"}, "stream"),
        ({**BODY, "stop": "\ud800"}, "stop"),
        ({**BODY, "prompt": "\ud800"}, "UTF-8"),
        ({**BODY, "\ud800": 1}, "unicode"),
        ({**BODY, "prompt": [[]]}, "prompt"),
        ({**BODY, "prompt": [1, True]}, "prompt"),
        ({**BODY, "prompt": [999]}, "token 999"),
        ({**BODY, "logprobs": 21}, "logprobs"),
        ({**BODY, "max_tokens": -1}, "max_tokens"),
        ({"model": "ava-test", "messages": []}, "messages"),
    ],
)
def test_nonsense_is_refused_by_name_with_400(serve, body, says):
    server = serve()
    status, answer = post(server, body)
    assert status == 400 and says in answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert works(server)


def test_unknown_paths_and_methods_answer_in_the_same_shape(serve):
    server = serve()
    status, answer = post(server, {}, "/v1/nothing")
    assert status == 404 and "/v1/nothing" in answer["error"]["message"]
    status, answer = post(server, {}, "/healthz")
    assert status == 405 and answer["error"]["type"] == "invalid_request_error"


def test_a_body_is_refused_while_it_comes(serve):
    server = serve(limits=Limits(body_bytes=1000))
    with raw(server, f"POST /v1/completions HTTP/1.1\r\n{HEADERS}Content-Length: 1000000\r\n\r\n{'x' * 2000}") as late:
        assert late.recv(100).startswith(b"HTTP/1.1 413")
    assert works(server)


def test_a_body_that_never_comes_is_answered_with_408(serve):
    server = serve(limits=Limits(body_seconds=0.2))
    with raw(server, f"POST /v1/completions HTTP/1.1\r\n{HEADERS}Content-Length: 10\r\n\r\n{{") as late:
        assert late.recv(100).startswith(b"HTTP/1.1 408")


def test_headers_that_never_come_end_the_connection(serve, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    server = serve()
    with raw(server, "POST /v1/completions HTTP/1.1\r\nHost:") as late, pytest.raises(ConnectionError):
        while True:
            time.sleep(0.05)
            late.sendall(b"a")
    assert works(server)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_rows(serve, stream):
    server = serve()
    server.engine.seconds, server.engine.context = 0.05, 10**6
    connection = raw(server, request_text({**BODY, "n": 4, "max_tokens": 10**5, "stream": stream}))
    wait_until(lambda: len(server.engine.running) == 4)
    connection.close()
    wait_until(lambda: not server.engine.running)
    assert server.engine.generated < 4 * 10**5


def test_a_client_that_stops_reading_is_dropped_and_others_are_served(serve):
    server = serve(limits=Limits(write_seconds=0.5))
    server.engine.context = 10**6
    server.engine._next = lambda sequence: _long(server.engine, sequence)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(request_text({**BODY, "max_tokens": 10**5, "stream": True}).encode())
    wait_until(lambda: server.engine.running)
    server.engine.seconds = 0.001
    assert works(server)
    wait_until(lambda: not server.engine.running)
    assert server.engine.generated < 10**5
    connection.close()


def _long(engine, sequence):
    from ava_core.serving.requests import Delta

    sequence.tokens += 1
    engine.generated += 1
    done = sequence.tokens == sequence.request.settings.max_new_tokens
    return Delta(text="x" * 10_000, tokens=sequence.tokens, finish_reason="length" if done else None)


def test_a_model_exchanged_between_choice_and_submission_fails_no_request(serve, draining):
    server = serve()
    other = serve()
    server.engine.refusal = draining
    chosen = []

    def current():
        chosen.append(server.models.served)
        if len(chosen) == 1:
            return server.models.served
        return other.models.served.__class__(**{**vars(server.models.served), "engine": successor, "version": "4"})

    from ava_core.serving.streams import Bridge
    from tests.serving.http.conftest import ScriptedEngine

    successor = ScriptedEngine(Bridge(server.loop).deliver)
    server.models.current = current
    try:
        assert works(server)
        assert len(successor.requests) == 1
    finally:
        successor.close()


def test_a_draining_server_says_when_to_come_back(serve):
    server = serve()
    server.app.state.refuse()
    status, answer = post(server, BODY)
    assert status == 503 and answer["error"]["code"] == "draining"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{server.address}/healthz", timeout=200)
    assert caught.value.code == 503 and json.load(caught.value) == {"status": "draining"}


def test_a_failed_engine_shows_in_the_health(serve):
    server = serve()
    server.engine.failed = True
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{server.address}/healthz", timeout=200)
    assert caught.value.code == 503


def test_metrics_count_requests_and_tokens(serve):
    server = serve()
    assert works(server)
    post(server, b"{")
    with urllib.request.urlopen(f"{server.address}/metrics", timeout=200) as answer:
        lines = answer.read().decode().splitlines()
    assert 'ava_requests_total{path="/v1/completions",status="200"} 1.0' in lines
    assert 'ava_requests_total{path="/v1/completions",status="400"} 1.0' in lines
    assert "ava_time_to_first_token_seconds_count 1.0" in lines
    assert "ava_generated_tokens_total 1.0" in lines and "ava_cache_bytes 4096.0" in lines
    assert any(line.startswith("ava_model_info{") and 'version="3"' in line for line in lines)
    assert any(line.startswith("process_resident_memory_bytes") for line in lines)
