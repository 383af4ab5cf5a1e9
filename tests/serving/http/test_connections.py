"""Connections and clients that leave: none shuts others out, each request is a line of the log and counted once."""

import json
import logging
import re
import socket
import struct
import time
import urllib.request
from contextlib import ExitStack, suppress

import pytest

from ava_core.serving.http import connections
from ava_core.serving.http.app import Access
from ava_core.serving.requests import Failed
from tests.serving.http.conftest import wait_until
from tests.serving.http.test_bad_clients import BODY, HEADERS, post, raw, request_text, works

UPLOAD = f"POST /v1/completions HTTP/1.1\r\n{HEADERS}Content-Length: 1000\r\n\r\n{{"


@pytest.fixture
def few_connections(monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 12)


def rest(connection):
    """What is received until the server ends the connection, in whatever way."""
    received = b""
    with suppress(ConnectionError):
        while part := connection.recv(65536):
            received += part
    return received


def counted(server, **labels):
    """How often a request of these labels was answered."""
    with urllib.request.urlopen(f"{server.address}/metrics", timeout=200) as answer:
        text = answer.read().decode()
    wanted = ",".join(f'{name}="{value}"' for name, value in labels.items())
    found = re.search(rf"^ava_requests_total\{{{re.escape(wanted)}\}} (\S+)", text, re.MULTILINE)
    return float(found[1]) if found else 0


@pytest.mark.parametrize("sent", ["", "GET /healthz HTT", UPLOAD], ids=["nothing", "half a head", "half a body"])
def test_idle_connections_make_room_for_others(serve, few_connections, sent):
    server = serve()
    with ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(raw(server, sent))
        assert all(works(server) for _ in range(3))


def test_the_longest_idle_goes_first_and_a_running_stream_stays(serve, few_connections):
    server = serve()
    server.engine.seconds = 0.02
    with ExitStack() as stack:
        stream = stack.enter_context(raw(server, request_text({**BODY, "max_tokens": 60, "stream": True})))
        wait_until(lambda: server.engine.running)
        first = stack.enter_context(raw(server, ""))
        time.sleep(0.1)
        others = [stack.enter_context(raw(server, "")) for _ in range(10)]
        others[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert others[-1].recv(100).startswith(b"HTTP/1.1 200"), "it is full now, and nobody had to go"
        stack.enter_context(raw(server, ""))
        assert rest(first) == b""
        others[0].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert others[0].recv(100).startswith(b"HTTP/1.1 200")
        received = b""
        while b"[DONE]" not in received:
            received += stream.recv(65536)
    assert received.count(b'"text":"ab "') == 60


def test_when_all_connections_run_a_new_one_is_told_to_come_back(serve, few_connections):
    server = serve()
    server.engine.seconds = 0.05
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(raw(server, request_text({**BODY, "max_tokens": 60, "stream": True})))
        wait_until(lambda: len(server.engine.running) == 12)
        late = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=200))
        answer = rest(late)
        assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "overloaded"
    wait_until(lambda: not server.engine.running)
    assert works(server)


def test_the_limit_on_open_files_bounds_the_connections(monkeypatch):
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (1024, 4096))
    assert connections.most_connections() == 1024 - connections.SPARE_DESCRIPTORS
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (2**20, 2**20))
    assert connections.most_connections() == connections.MAX_CONNECTIONS


@pytest.mark.parametrize(
    ("soft", "hard", "after"), [(1024, 4096, 1472), (256, 512, 512), (1024, -1, 1472), (-1, -1, None)]
)
def test_the_limit_on_open_files_is_raised_as_far_as_may_be(monkeypatch, soft, hard, after):
    found = []
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(connections.resource, "setrlimit", lambda _, limits: found.append(limits))
    connections.raise_open_files()
    assert found == ([] if after is None else [(after, hard)])


def test_clients_that_leave_during_an_upload_make_one_line_each(serve, caplog):
    caplog.set_level(logging.INFO)
    server = serve()
    for index in range(20):
        connection = raw(server, UPLOAD)
        time.sleep(0.01)
        if index % 2:  # with a reset instead of a farewell
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    wait_until(lambda: counted(server, path="/v1/completions", status="499") == 20)
    wait_until(lambda: sum("/v1/completions" in record.getMessage() for record in caplog.records) >= 20)
    lines = [record.getMessage() for record in caplog.records if "/v1/completions" in record.getMessage()]
    assert len(lines) == 20 and all("499" in line for line in lines)
    assert works(server)
    assert not [record for record in caplog.records if record.exc_info or record.levelno > logging.INFO]


@pytest.mark.parametrize(
    "text",
    [
        "nonsense\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        f"POST /v1/completions HTTP/1.1\r\n{HEADERS}Content-Length: many\r\n\r\n",
        f"POST /v1/completions HTTP/1.1\r\n{HEADERS}Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
def test_what_is_no_http_is_answered_in_openai_s_shape_without_a_traceback(serve, caplog, text):
    server = serve()
    with raw(server, text) as connection:
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    assert works(server)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_broken_body_after_its_answer_ends_the_connection_without_a_traceback(serve, caplog):
    server = serve()
    with raw(server, "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n") as late:
        assert late.recv(100).startswith(b"HTTP/1.1 415")
        late.sendall(b"no length\r\n")
        assert b"HTTP/1.1" not in rest(late)
    assert works(server)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_defect_counts_as_500_and_is_logged_once(serve, caplog):
    server = serve()
    server.engine.refusal = ZeroDivisionError("a defect")
    assert post(server, BODY)[0] == 500
    assert counted(server, path="/v1/completions", status="500") == 1
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["a defect"]


def test_a_stream_that_fails_counts_by_its_code(serve, caplog):
    caplog.set_level(logging.INFO)
    server = serve()
    server.engine.fault = Failed("the model failed")
    with raw(server, request_text({**BODY, "max_tokens": 9, "stream": True})) as connection:
        received = b""
        while b"model_failed" not in received:
            received += connection.recv(65536)
    with urllib.request.urlopen(f"{server.address}/metrics", timeout=200) as answer:
        assert 'ava_broken_streams_total{code="model_failed"} 1.0' in answer.read().decode()
    wait_until(lambda: any(each.getMessage().endswith("1+2 tokens model_failed") for each in caplog.records))


@pytest.mark.parametrize("log_requests", [True, False])
def test_a_request_is_a_line_that_tells_nothing_of_what_was_said(serve, caplog, log_requests):
    caplog.set_level(logging.INFO)
    server = serve(log_requests=log_requests, access=Access(keys=["hidden-key"]))
    body = json.dumps({**BODY, "prompt": "a secret", "max_tokens": 5})
    text = f"POST /v1/completions?api_key=hidden-key HTTP/1.1\r\n{HEADERS}Authorization: Bearer hidden-key\r\n"
    with raw(server, f"{text}Content-Length: {len(body)}\r\n\r\n{body}") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    with raw(server, f"GET /%0aline-break%1b[0m HTTP/1.1\r\n{HEADERS}\r\n") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 401")
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("ava_core.serving.http")]
    if not log_requests:
        assert not lines
        return
    wait_until(lambda: len(caplog.records) == 2)
    lines = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(r"127\.0\.0\.1 POST /v1/completions 200 \d+\.\d{3} s 8\+5 tokens", lines[0])
    assert re.fullmatch(r"127\.0\.0\.1 GET /%0aline-break%1b\[0m 401 \d+\.\d{3} s", lines[1])
