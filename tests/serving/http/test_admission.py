"""Which requests are let in: by host, origin, content type and key."""

import json
import socket

import pytest

from ava_core.serving.http.admission import Hosts
from ava_core.serving.http.app import Access
from ava_core.serving.http.server import _reached_by
from tests.serving.http.test_bad_clients import BODY, post

BODY_TEXT = json.dumps({**BODY, "max_tokens": 1})


def ask(server, method="GET", path="/v1/models", body="", **headers):
    """Status, headers and body of an answer; `host` and the others are sent as given, and not at all if None."""
    sent = {"host": f"127.0.0.1:{server.port}", "content_type": "application/json", "connection": "close", **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in sent.items() if value is not None]
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, f"content-length: {len(body)}", "", ""])
    with socket.create_connection(("127.0.0.1", server.port), timeout=200) as connection:
        connection.sendall((head + body).encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, content = received.decode().partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), content


@pytest.mark.parametrize(
    ("access", "host", "known"),
    [
        (Access(), "localhost", True),
        (Access(), "LocalHost:8000", True),
        (Access(), "ava.localhost:8000", True),
        (Access(), "127.0.0.1", True),
        (Access(), "127.8.9.10:80", True),
        (Access(), "[::1]:8000", True),
        (Access(), "evil.example", False),
        (Access(), "localhost.evil.example", False),
        (Access(), "127.0.0.1.evil.example", False),
        (Access(), "evil.example:8000@localhost", False),
        (Access(), "localhost/evil", False),
        (Access(), "192.168.1.7:8000", False),
        (Access(), "0.0.0.0:8000", False),
        (Access(), "", False),
        (Access(addresses=True), "192.168.1.7:8000", True),
        (Access(addresses=True), "[fe80::1]", True),
        (Access(addresses=True), "evil.example", False),
        (Access(hosts=["models.example"]), "Models.Example.:443", True),
        (Access(hosts=["models.example"]), "a.models.example", False),
        (Access(hosts=["*.models.example"]), "a.b.models.example", True),
        (Access(hosts=["*.models.example"]), "models.example", False),
        (Access(hosts=["*.models.example"]), "evilmodels.example", False),
        (Access(hosts=["10.0.0.7"]), "10.0.0.7:80", True),
        (Access(hosts=["*"]), "evil.example", True),
    ],
)
def test_the_server_answers_for_its_own_names_alone(access, host, known):
    assert Hosts(None, access.hosts, access.addresses).knows(host) == known


@pytest.mark.parametrize(
    ("host", "address", "beyond"),
    [
        ("localhost", "127.0.0.1", False),
        ("::1", "::1", False),
        ("0.0.0.0", "0.0.0.0", True),
        ("::", "::", True),
        ("box.example", "192.168.1.7", True),
    ],
)
def test_beyond_loopback_addresses_are_names_and_no_keys_is_one_warning(caplog, host, address, beyond):
    open_to_all = _reached_by(Access(hosts=["models.example"]), host, address)
    assert open_to_all.addresses == beyond and set(open_to_all.hosts) == {"models.example", host}
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == beyond and all(address in line and "AVA_API_KEYS" in line for line in warnings)
    assert _reached_by(Access(keys=["k"]), host, address).keys == ["k"]
    assert len(caplog.records) == beyond


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/healthz", "/v1/completions", "/nothing"])
def test_another_host_is_refused_on_every_path(serve, path):
    status, _, content = ask(serve(), path=path, host="rebound.example")
    error = json.loads(content)["error"]
    assert status == 421 and error["code"] == "host_not_allowed" and "--allowed-host" in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=application/json", 415),
        ("application/jsonl", 415),
        (None, 415),
    ],
)
def test_a_post_is_json_and_says_so(serve, kind, status):
    server = serve()
    found, _, content = ask(server, "POST", "/v1/completions", BODY_TEXT, content_type=kind)
    assert found == status
    assert len(server.engine.requests) == (status == 200)
    if status == 415:
        assert json.loads(content)["error"]["code"] == "unsupported_media_type"


def test_a_page_of_a_named_origin_may_ask_and_send_its_key(serve):
    server = serve(access=Access(keys=["k"], origins=["https://chat.example"]))
    asked = {"access_control_request_method": "POST", "access_control_request_headers": "authorization,x-stainless-os"}
    status, headers, _ = ask(server, "OPTIONS", "/v1/chat/completions", origin="https://chat.example", **asked)
    assert status == 200 and headers["access-control-allow-origin"] == "https://chat.example"
    assert headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert "post" in headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in headers
    for key, expected in (("Bearer k", 200), ("Bearer wrong", 401)):
        status, headers, _ = ask(
            server, "POST", "/v1/completions", BODY_TEXT, origin="https://chat.example", authorization=key
        )
        assert status == expected and headers["access-control-allow-origin"] == "https://chat.example"
        assert "origin" in headers["vary"]


def test_pages_of_other_origins_get_no_leave(serve):
    server = serve(access=Access(origins=["https://chat.example"]))
    for origin in ("https://evil.example", "http://chat.example", "https://chat.example:444", "null"):
        status, headers, _ = ask(
            server, "OPTIONS", "/v1/completions", origin=origin, access_control_request_method="POST"
        )
        assert status == 400 and "access-control-allow-origin" not in headers
        assert "access-control-allow-origin" not in ask(server, origin=origin)[1]


def test_without_origins_no_page_may_ask(serve):
    server = serve()
    preflight = {"origin": "https://chat.example", "access_control_request_method": "POST"}
    status, headers, _ = ask(server, "OPTIONS", "/v1/completions", **preflight)
    assert status == 405 and not [name for name in headers if name.startswith("access-control")]


def test_an_internal_error_reaches_the_page_too(serve):
    server = serve(access=Access(origins=["*"]))
    server.engine.refusal = ZeroDivisionError("a defect")
    status, headers, content = ask(server, "POST", "/v1/completions", BODY_TEXT, origin="https://chat.example")
    assert status == 500 and headers["access-control-allow-origin"] == "*"
    assert json.loads(content)["error"]["code"] == "internal_error" and "a defect" not in content


def test_health_needs_no_key_and_metrics_do(serve):
    server = serve(access=Access(keys=["k"]))
    assert ask(server, path="/healthz")[0] == 200
    assert ask(server, path="/metrics")[0] == 401
    assert ask(server, path="/metrics", authorization="bearer k")[0] == 200
    assert post(server, BODY)[0] == 401
