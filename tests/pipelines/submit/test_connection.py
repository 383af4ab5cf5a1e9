"""Servers that refuse, stall, drop or aren't there: one line that names the way out, and no token in it."""

import logging

import pytest
from kfp_server_api.exceptions import ApiException
from werkzeug.serving import make_ssl_devcert

from ava_core.errors import AvaError, ConfigError
from pipelines.submit import connection, watch
from pipelines.submit.__main__ import main
from pipelines.submit.errors import detail
from tests.pipelines.kfp_server import serving

LIST = "PipelineService_ListPipelines"


def test_server_that_refuses_us_is_named_with_the_way_out(server, submit):
    server.token = "right"
    with pytest.raises(AvaError, match=r"refuses us \(401\): give a valid token with --token-file"):
        submit(server)
    assert server.state.pipelines == [] and len(server.calls) == 1


def test_token_of_the_file_is_sent_and_never_shown(server, submit, tmp_path, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    server.token = "s3cret"
    (tmp_path / "token").write_text("s3cret\n")
    assert submit(server, "--token-file", str(tmp_path / "token"), "--wait") == 0
    (tmp_path / "token").write_text("s3cret-but-wrong\n")
    with pytest.raises(AvaError) as caught:
        submit(server, "--token-file", str(tmp_path / "token"))
    assert "s3cret" not in "".join(capsys.readouterr()) + caplog.text + str(caught.value)


def test_token_of_the_environment_is_sent(server, submit, monkeypatch):
    server.token = "s3cret"
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "s3cret")
    assert submit(server) == 0


def test_address_and_token_file_are_taken_from_kfps_own_variables(server, params, tmp_path, monkeypatch):
    server.token = "s3cret"
    (tmp_path / "token").write_text("s3cret")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.address)
    assert main(["--params", str(params), "--data-uri", "s3://bucket/raw"]) == 0
    assert len(server.state.runs) == 1


def test_token_that_is_rotated_while_we_wait_is_read_again(server, submit, tmp_path, monkeypatch):
    server.token = "first"
    token_file = tmp_path / "token"
    token_file.write_text("first")

    def rotate(seconds):
        server.token = f"{server.token}+"
        token_file.write_text(server.token)

    monkeypatch.setattr(watch, "sleep", rotate)
    assert submit(server, "--token-file", str(token_file), "--wait") == 0
    assert len(server.token) > len("first") + 3


def test_empty_token_file_is_refused(server, submit, tmp_path):
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ConfigError, match=r"--token-file .*token: is empty"):
        submit(server, "--token-file", str(tmp_path / "token"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_ssl_devcert(str(tmp_path_factory.mktemp("tls") / "server"), cn="localhost")


def test_server_whose_certificate_is_signed_by_the_given_authority_is_trusted(description, submit, certificate):
    with serving(description, certificate) as server:
        assert server.address.startswith("https://")
        assert submit(server, "--ca-file", certificate[0]) == 0
        with pytest.raises(AvaError, match=r"TLS: .*certificate.*: check --host, or give .* with --ca-file$"):
            submit(server)


def test_file_without_a_certificate_is_refused(server, submit, params):
    with pytest.raises(ConfigError, match=r"--ca-file .*params\.yaml: holds no certificate in PEM form"):
        submit(server, "--ca-file", str(params))


def test_nobody_at_the_address_is_one_line(submit, capsys):
    with pytest.raises(AvaError, match=r"^http://127\.0\.0\.1:9: no Kubeflow Pipelines server answers \(New.*forward"):
        submit("http://127.0.0.1:9")
    assert capsys.readouterr().err == ""


def test_another_kind_of_server_is_one_line(server, submit):
    with pytest.raises(AvaError, match=r"has no Kubeflow Pipelines API \(404\)"):
        submit(f"{server.address}/elsewhere")


def test_login_page_is_told_from_the_api(server, submit):
    server.fail(LIST, page="<html>Log in</html>")
    with pytest.raises(AvaError, match=r"answers with text/html.* where the API answers with JSON, as a login page"):
        submit(server)
    assert server.state.pipelines == []


def test_redirect_to_a_login_page_is_not_followed(server, submit):
    server.fail(LIST, location=f"{server.address}/login?state=s3cret")
    with pytest.raises(AvaError, match=rf"sends us on to {server.address} \(302\): check --host and the token$"):
        submit(server)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "retry_after": "0"},
        {"status": 500},
        {"status": 502},
        {"status": 503, "retry_after": "0"},
        {"status": 504},
        {"drop": "before"},
        {"drop": "after"},
    ],
    ids=str,
)
def test_question_is_asked_again(server, submit, fault, capsys):
    server.fail(LIST, **fault, times=2)
    assert submit(server) == 0
    assert server.count(LIST) == 3 and len(server.state.runs) == 1
    assert capsys.readouterr().err == ""


def test_server_that_keeps_failing_is_told_with_its_own_words_on_one_line(server, submit):
    server.fail(LIST, status=500, times=1000)
    with pytest.raises(AvaError, match=r"^http://127\.0\.0\.1:\d+: 500 INTERNAL SERVER ERROR: told to fail$"):
        submit(server)
    assert server.count(LIST) == 1 + connection.RETRIES.total


def test_server_that_never_answers_is_given_up(server, submit, monkeypatch):
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(connection, "RETRIES", connection.RETRIES.new(total=1))
    server.fail(LIST, delay=0.3, times=2)
    with pytest.raises(AvaError, match=r"took the connection and gave no answer in time$"):
        submit(server)


def test_longest_pause_that_a_server_may_ask_for_is_bounded():
    assert connection.RETRIES.retry_after_max == 60


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('{"message": "two\\nlines"}', "two lines"),
        ('{"error_message": "of an upload", "error_details": "long"}', "of an upload"),
        ("upstream connect error", "upstream connect error"),
        ("[]", "[]"),
        (None, "it says nothing more"),
    ],
)
def test_what_the_server_says_is_one_line(body, text):
    error = ApiException(status=400, reason="Bad Request")
    error.body = body
    assert detail(error) == text
