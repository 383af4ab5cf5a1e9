"""Access labels: a caller has those of his API key, and says at most which of them he leaves out."""

import json

import pytest

from ava_core.errors import ConfigError
from ava_core.serving.http.admission import key_digest
from ava_core.serving.http.app import Access
from ava_core.serving.http.key_labels import read_key_labels
from tests.serving.http.indexes import CONTEXT, made_of
from tests.serving.http.test_admission import ask

TEXTS = ("The newt of all.", "The newt of the court.", "The newt of the crown.")
LABELS = ("", "court", "crown")
KEYS = {"nobody": (), "clerk": ("court",), "king": ("court", "crown")}


@pytest.fixture
def server(serve, tmp_path):
    access = Access(keys=list(KEYS), labels={key_digest(key): frozenset(labels) for key, labels in KEYS.items()})
    started = serve(access=access, retriever=made_of(tmp_path / "index", TEXTS, LABELS))
    started.engine.context = CONTEXT
    return started


def search(server, key, **body):
    """Status, and documents that are found or the error."""
    auth = {"authorization": f"Bearer {key}"} if key else {}
    status, _, content = ask(server, "POST", "/v1/search", json.dumps({"query": "newt", **body}), **auth)
    answer = json.loads(content)
    return status, {one["document"] for one in answer["data"]} if status == 200 else answer["error"]


@pytest.mark.parametrize(
    ("key", "wanted", "found"),
    [
        ("nobody", {}, {0}),
        ("clerk", {}, {0, 1}),
        ("king", {}, {0, 1, 2}),
        ("king", {"labels": ["crown"]}, {0, 2}),
        ("king", {"labels": []}, {0}),
        ("clerk", {"labels": None}, {0, 1}),
    ],
)
def test_a_key_finds_what_its_labels_allow_and_can_leave_some_out(server, key, wanted, found):
    assert search(server, key, **wanted) == (200, {f"play{number}.md" for number in found})


@pytest.mark.parametrize(("key", "label"), [("nobody", "court"), ("clerk", "crown"), ("king", "papal"), ("king", "")])
def test_a_label_that_the_key_does_not_have_is_refused_by_name(server, key, label):
    status, error = search(server, key, labels=["court", label] if key != "nobody" else [label])
    if label:
        assert (status, error["code"], error["type"]) == (403, "label_not_allowed", "permission_error")
        assert error["param"] == "labels" and repr(label) in error["message"]
    else:
        assert status == 400 and error["param"] == "labels.1"


def test_completions_and_chats_go_by_the_key_too(server):
    for key, count in (("nobody", 1), ("clerk", 2), ("king", 3)):
        for path, said in (
            ("/v1/completions", {"prompt": "newt"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "newt"}]}),
        ):
            body = {"model": "ava-test", "max_tokens": 1, "retrieval": {}, **said}
            status, _, content = ask(server, "POST", path, json.dumps(body), authorization=f"Bearer {key}")
            assert status == 200 and len(json.loads(content)["retrieval"]) == count
            body["retrieval"] = {"labels": ["papal"]}
            status, _, content = ask(server, "POST", path, json.dumps(body), authorization=f"Bearer {key}")
            assert status == 403 and json.loads(content)["error"]["param"] == "retrieval.labels"


def test_without_keys_nobody_has_labels(serve, tmp_path):
    server = serve(retriever=made_of(tmp_path / "index", TEXTS, LABELS))
    assert search(server, None) == (200, {"play0.md"})
    assert search(server, "king") == (200, {"play0.md"})
    assert search(server, None, labels=["court"])[0] == 403


def test_a_key_without_an_entry_has_no_labels(serve, tmp_path):
    retriever = made_of(tmp_path / "index", TEXTS, LABELS)
    server = serve(access=Access(keys=["a", "b"], labels={key_digest("a"): {"court"}}), retriever=retriever)
    assert search(server, "a")[1] == {"play0.md", "play1.md"}
    assert search(server, "b")[1] == {"play0.md"}
    assert search(server, "c")[0] == search(server, None)[0] == 401


def test_neither_keys_nor_their_digests_are_logged(server, caplog):
    with caplog.at_level("DEBUG"):
        search(server, "king", labels=["papal"])
    assert "/v1/search" in caplog.text
    assert "king" not in caplog.text and key_digest("king")[:8] not in caplog.text


def test_the_file_says_which_labels_a_key_has(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({key_digest("clerk"): ["court"], key_digest("nobody"): []}))
    assert read_key_labels(path, list(KEYS)) == {key_digest("clerk"): {"court"}, key_digest("nobody"): set()}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "can't be read as JSON"),
        ("\ud800", "can't be read as JSON"),
        ("[]", "must be an object"),
        ({key_digest("stranger"): ["court"]}, "is the SHA-256 of no known key"),
        ({key_digest("clerk").upper(): ["court"]}, "an entry of 64 characters: must be a key's SHA-256"),
        ({key_digest("clerk"): "court"}, "must be a list of labels"),
        ({key_digest("clerk"): ["court", ""]}, "must be a list of labels"),
        ({key_digest("clerk"): [1]}, "must be a list of labels"),
    ],
)
def test_a_file_of_labels_that_is_wrong_is_refused(tmp_path, content, says):
    path = tmp_path / "labels.json"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ConfigError, match=f"--key-labels .*{says}"):
        read_key_labels(path, list(KEYS))


def test_a_key_that_stands_in_the_file_by_mistake_is_not_shown(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"s3cret-key": ["court"]}))
    with pytest.raises(ConfigError) as refused:
        read_key_labels(path, ["s3cret-key"])
    assert "s3cret-key" not in str(refused.value)
    with pytest.raises(ConfigError, match="give --api-key-file"):
        read_key_labels(path, [])
    with pytest.raises(ConfigError, match="can't be read"):
        read_key_labels(tmp_path / "absent", ["a"])
