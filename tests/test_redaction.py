"""What is a secret in a text and what isn't, and that looking for it takes time in proportion to the text."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ava_core.redaction import redact, redact_address

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
words = st.text("abcdefghijklmnop0123456789", min_size=8, max_size=12)

# Split, so that no scanner of repositories takes them for secrets that somebody lost.
HEX = "0123456789abcdef" * 4
LETTERS = "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"
JWT = "eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0" + ".dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
SECRETS = [  # a text, and what of it may not be seen
    ("postgresql://ava:hunter2@db:5432/mlflow", "hunter2"),
    ("https://hunter2@host/simple", "hunter2"),
    ("https://ava:hun/ter2@host.example/simple", "ter2"),
    ("https://ava:hun@ter2@host:80/simple", "ter2"),
    ("https://ava:hun:ter2@host.example", "ter2"),
    ("https://ava:hun%2Fter2@host.example", "ter2"),
    ("https://ava:hun#ter2?x=y@host.example/a?b=c", "ter2"),
    ("mysql+pymysql://ava:1/hunter2@db:3306/x", "hunter2"),
    ("postgresql://ava:p@ss/hunter2@db/x", "hunter2"),
    ("git+https://ava:hunter2@github.com/o/r.git@v1.2", "hunter2"),
    ("password=hunter2", "hunter2"),
    ("DB_PASSWORD = hunter2", "hunter2"),
    ("password=hunter,2;&x", "hunter"),
    ("password='it is a hunter2' user=ava", "hunter2"),
    ("MLFLOW_TRACKING_PASSWORD=hunter2", "hunter2"),
    ("MLFLOW_TRACKING_TOKEN: hunter2", "hunter2"),
    ("AWS_SECRET_ACCESS_KEY=hunter2", "hunter2"),
    ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYzzzzzzzKEY", "wJalr"),
    ("AKIA" + "IOSFODNN7ZZZZZZZ, wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYzzzzzzzKEY", "wJalr"),
    ("AKIA" + "IOSFODNN7ZZZZZZZ", "IOSF"),
    ("{'api_key': 'hunter2'}", "hunter2"),
    ('{"api_key": "hun ter2", "x": 1}', "ter2"),
    ('"{\\"api_key\\": \\"hun ter2\\"}"', "ter2"),
    ('{"hf-token": "hunter2", "x": 1}', "hunter2"),
    ("client_secret: hunter2", "hunter2"),
    ("GET /x?access_token=hunter2&y=1", "hunter2"),
    ("GET /x?y=1&key=hunter2", "hunter2"),
    ("GET /x?token=hunter2", "hunter2"),
    ("GET /x?sas=hunter2&api_key=hunter3", "hunter"),
    ("https://a.blob.core.windows.net/c/f?sv=2022-11-02&sp=r&sig=hunter2%2Bx%3D", "hunter2"),
    ("sig=hunter2%2BAbCdEfGhIjKlMn%3D", "hunter2"),
    ("https://b.s3.amazonaws.com/k?X-Amz-Credential=AKIA%2Fhunter2&X-Amz-Signature=hunter3", "hunter"),
    ("https://storage.googleapis.com/b/k?X-Goog-Signature=hunter2", "hunter2"),
    ("DefaultEndpointsProtocol=https;AccountName=a;AccountKey=hunter2/x+y==;EndpointSuffix=core", "hunter2"),
    ("Endpoint=sb://x.example/;SharedAccessKey=hunter2=;Path=p", "hunter2"),
    ("Server=db;Uid=ava;Pwd=hunter2;", "hunter2"),
    ("Authorization: Bearer hunter2_and_more", "hunter2"),
    ("authorization: token hunter2", "hunter2"),
    ("curl -H 'Authorization: Basic aHVudGVyMg=='", "aHVu"),
    ("{'Authorization': 'Basic aHVudGVyMg=='}", "aHVu"),
    ("refused: Bearer hunter2_and_more", "hunter2"),
    ("ava x --token hunter2 --y", "hunter2"),
    ("helm --set-x --db-password hunter2", "hunter2"),
    ("using hf_" + LETTERS, LETTERS),
    ("using sk-" + LETTERS, LETTERS),
    ("using sk-ant-api03-" + LETTERS, LETTERS),
    ("using ghp_" + LETTERS, LETTERS),
    ("using github_pat_" + LETTERS, LETTERS),
    ("using glpat-" + LETTERS, LETTERS),
    ("using AIza" + LETTERS, LETTERS),
    ("using xoxb-" + LETTERS, LETTERS),
    ("using dapi" + HEX[:32], HEX[:32]),
    ("using npm_" + LETTERS, LETTERS),
    (f"using {JWT} now", "zdWIi"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIhunter2\nabc\n-----END RSA PRIVATE KEY-----\n", "hunter2"),
    ("-----BEGIN PRIVATE KEY-----\\nMIIhunter2", "hunter2"),
]

READABLE = [
    "--set: data.shard_tokens = -1: must be > 0",
    "--set: model.num_experts_per_token = 99: must be <= 12, the number of experts",
    "params.yaml: tokenizer: unknown key: did you mean tokenizer.vocab_size?",
    "params.yaml: register.password: unknown key: there are model_name, experiment, gate",
    "train  40%  loss 3.21  tokens/s 8,123  ETA 40 s",
    "tokens_seen=100, pad_token=<|pad|>",
    "http://127.0.0.1:5000/#/experiments/1",
    "http://localhost:4873/@scope/package",
    "s3://bucket/models/@champion/model.safetensors",
    "sqlite:///.ava/mlflow/mlflow.db",
    "/etc/passwd: no such file",
    "/run/secrets/db_password: Permission denied",
    "/home/ava/.cache/huggingface/token: Is a directory",
    "C:\\keys\\api_key: the file is gone",
    "credentials: No such file or directory",
    "--token-file /etc/token: can't be read: Permission denied",
    "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, then run it again",
    "--host: holds a user or a password, which would be shown: use a token or a Kubernetes secret",
    "give --token or --ca-file with the password of the server",
    "basic authentication is required, or bearer tokens: see the documentation",
    f"model.safetensors: sha256 {HEX} instead of {HEX[::-1]}",
    f"commit {HEX[:40]} of main",
    "api_key, token and secret are names; sig and key too",
    "hf_hub_download of sk-learn: a risk-assessment-of-everything-that-can-happen",
    "token=None, password: null, secret=false",
    "must be key.path=value, key=5, /x?page=3&sort=key",
    "mail ava@example.org about http://host:80/x",
    "git@github.com:owner/name.git",
    "-----BEGIN CERTIFICATE-----\nMIIabc\n-----END CERTIFICATE-----",
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_secret_is_hidden_and_once_more_changes_nothing(text, secret):
    shown = redact(f"before {text}\nafter")
    assert secret not in shown and "***" in shown
    assert shown.startswith("before ") and (shown.endswith("\nafter") or text[-7:] == "hunter2")
    assert redact(shown) == shown


@pytest.mark.parametrize("text", READABLE)
def test_what_is_no_secret_stays_as_it_is(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ava:hun/ter2@host.example/a", "https://***@host.example/a"),
        ("git+https://ava:x@github.com/o/r.git@v1", "git+https://***@github.com/o/r.git@v1"),
        ("/c?sv=1&sig=abc%3D&se=2026", "/c?sv=1&sig=***&se=2026"),
        ('{"api_key": "a, b", "x": 1}', '{"api_key": "***", "x": 1}'),
        ("AccountName=a;AccountKey=b==;EndpointSuffix=c", "AccountName=a;AccountKey=***;EndpointSuffix=c"),
        ("password: x, user: y", "password: ***, user: y"),
    ],
)
def test_what_stands_around_a_secret_stays(text, shown):
    assert redact(text) == shown


@relaxed
@given(user=words, secret=words, between=st.sampled_from(["", "/", "@", ":", "%", "/@", "#", "?"]))
def test_no_password_in_an_address_survives(user, secret, between):
    address = f"postgresql://{user}:x{between}{secret}@db/x"
    assert secret not in redact(f"see {address} for more") and secret not in redact_address(address)


@relaxed
@given(user=words, password=words, host=words, query=words)
def test_address_is_shown_without_credentials_and_query(user, password, host, query):
    shown = redact_address(f"https://{user}:{password}@{host}.example:5000/path?key={query}#{query}")
    assert shown == f"https://***@{host}.example:5000/path"


@pytest.mark.parametrize("uri", ["sqlite:///.ava/mlflow/mlflow.db", "http://127.0.0.1:5000", "databricks://profile"])
def test_address_without_credentials_stays_as_it_is(uri):
    assert redact_address(uri) == uri


HOSTILE = [
    *(
        "a-",
        "a.",
        "_",
        "@",
        "/",
        "://",
        "a://",
        "a://b:c",
        "a://b:c@",
        "a://b:c/@",
        "; ",
        "&a",
        "=",
        "--",
        "eyJ",
        "eyJ.",
    ),
    *("token", 'token="', "token='", 'token=\\"', 'token="\\', "token: ", "token=&a", "token=,", "a/token: ", "?key="),
    *("basic ", "bearer a", "Authorization: ", "--token ", "sk-", "ghp_", "AKIA", "SG.", "-----BEGIN PRIVATE KEY-----"),
    *("eyJ", "eyJ.", "-----BEGIN ", "A", "[", "\\", "\n", "\t"),
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_time_grows_with_the_length_and_no_faster(unit):
    """The fault was quadratic: 33 s for 32 kB, so 9 minutes for these, which take a tenth of a second."""
    text = unit * (128_000 // len(unit))
    began = time.process_time()
    redact(text)
    redact_address(f"http://{text}")
    assert time.process_time() - began < 30
