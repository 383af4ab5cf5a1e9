"""What gives texts their vectors: MiniLM as Transformers computes it, a model of ours, a server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from ava_core.config.embedding import HttpEmbedding
from ava_core.errors import AvaError, ConfigError
from ava_core.retrieval.embedding import http as http_module
from ava_core.retrieval.embedding.embedder import in_batches, unit
from ava_core.retrieval.embedding.http import HttpServer
from ava_core.retrieval.embedding.minilm import MAX_TOKENS, PACKAGE, MiniLM
from ava_core.retrieval.embedding.opening import open_embedder
from ava_core.retrieval.embedding.own_model import OwnModel

TEXTS = ["How old are you?", "What is your age?", "The parcel was sent to the wrong town.", "x " * 400, "é"]


@pytest.fixture(scope="module")
def minilm():
    return MiniLM.open(1)


def test_minilm_gives_the_vectors_that_transformers_gives(minilm):
    import torch
    from transformers import AutoTokenizer, BertModel

    folder = Path(find_spec(PACKAGE).origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    given = tokenizer(TEXTS, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**given).last_hidden_state
    mask = given["attention_mask"].unsqueeze(-1)
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()
    np.testing.assert_allclose(minilm.embed(TEXTS), expected, atol=2e-6)
    assert minilm.count_tokens(TEXTS) == [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]


def test_minilm_knows_what_means_the_same(minilm):
    same, other = minilm.embed(TEXTS[:3]) @ minilm.embed(TEXTS[:1])[0], 0.3
    assert same[1] > 0.6 > other > same[2]


def test_a_text_has_the_same_vector_whatever_it_is_embedded_with(minilm):
    together = minilm.embed(TEXTS)
    alone = np.concatenate([minilm.embed([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=2e-6)


def test_batches_hold_neighbours_in_length_and_no_more_tokens_than_allowed():
    lengths = [5, 1, 9, 1, 5, 20]
    seen = []

    def forward(rows):
        seen.append(rows)
        return np.array([[lengths[row]] for row in rows], np.float32)

    assert in_batches(lengths, 12, forward, 1).ravel().tolist() == lengths
    assert seen == [[1, 3], [0, 4], [2], [5]]


def test_own_model_means_its_last_hidden_states(tiny_model):
    import torch

    from ava_core.generation.loading import load_model

    embedder = OwnModel.open(tiny_model)
    texts = ["Enter HAMLET", "To be, or not to be: that is the question", ""]
    model, tokenizer = load_model(tiny_model)
    for text, vector in zip(texts, embedder.embed(texts), strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            hidden = model.base_model(torch.tensor([[tokenizer.eos_token_id, *ids]])).last_hidden_state[0]
        mean = (hidden[1:] if ids else hidden).mean(0).numpy()
        np.testing.assert_allclose(vector, unit(mean[None])[0], atol=1e-5)


def test_own_model_is_told_from_another_and_a_quantised_one_is_refused(tiny_model, tiny_int8):
    assert OwnModel.open(tiny_model).identity.startswith("model:")
    with pytest.raises(AvaError, match="is a quantised model"):
        OwnModel.open(tiny_int8)


class Server(ThreadingHTTPServer):
    """Answers /v1/embeddings with the lengths of the texts; `faults` are answers to come before."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.bodies, self.keys = [], [], []

    @property
    def config(self):
        return HttpEmbedding(url=f"http://127.0.0.1:{self.server_port}/v1", model="lengths", batch=2)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers["Authorization"])
        rows = [{"index": n, "embedding": [float(len(text)), 1.0]} for n, text in enumerate(body["input"])]
        status, answer = 200, {"data": rows[::-1]}
        if self.server.faults:
            status, answer = self.server.faults.pop(0)
        data = json.dumps(answer).encode()
        self.send_response(status if self.path == "/v1/embeddings" else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(http_module, "PAUSE_SECONDS", 0.0)
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_server_is_asked_in_batches_and_answers_in_any_order(server):
    vectors = HttpServer(server.config).embed(["a", "bb", "ccc"])
    np.testing.assert_allclose(vectors, unit(np.array([[1, 1], [2, 1], [3, 1]], np.float32)), rtol=1e-6)
    assert [len(body["input"]) for body in server.bodies] == [2, 1]
    assert HttpServer(server.config).dimension == 2


def test_server_is_sent_the_key_of_the_environment_and_no_error_shows_it(server, monkeypatch):
    monkeypatch.setenv("AVA_EMBEDDING_KEY", "s3cret")
    server.faults = [(401, {"error": "no"})]
    with pytest.raises(AvaError, match="answered 401") as refused:
        HttpServer(server.config).embed(["a"])
    assert server.keys == ["Bearer s3cret"]
    assert "s3cret" not in str(refused.value)


def test_server_that_is_busy_is_asked_again(server):
    server.faults = [(503, {}), (429, {})]
    assert HttpServer(server.config).embed(["a"]).shape == (1, 2)
    server.faults = [(503, {})] * 3
    with pytest.raises(AvaError, match="answered 503"):
        HttpServer(server.config).embed(["a"])


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ({"data": []}, "shape"),
        ({"data": [{"index": 0, "embedding": [1, "x"]}]}, "something else than embeddings"),
        ({"error": "x"}, "something else than embeddings"),
        ({"data": [{"index": 0, "embedding": [None, 1.0]}]}, "something else|not finite"),
    ],
)
def test_server_that_answers_something_else_is_refused(server, answer, fault):
    server.faults = [(200, answer)]
    with pytest.raises(AvaError, match=fault):
        HttpServer(server.config).embed(["a"])


def test_server_that_is_not_there_is_named():
    with pytest.raises(AvaError, match=r"http://127.0.0.1:9/v1: doesn't answer"):
        http_module.PAUSE_SECONDS, kept = 0.0, http_module.PAUSE_SECONDS
        try:
            HttpServer(HttpEmbedding(url="http://127.0.0.1:9/v1")).embed(["a"])
        finally:
            http_module.PAUSE_SECONDS = kept


def test_embedding_is_chosen_by_name(tiny_model):
    assert open_embedder("none", HttpEmbedding(), None) is None
    assert isinstance(open_embedder("model", HttpEmbedding(), tiny_model), OwnModel)
    assert isinstance(open_embedder("http", HttpEmbedding(), None), HttpServer)
    with pytest.raises(ConfigError, match="give its folder with --model"):
        open_embedder("model", HttpEmbedding(), None)
    with pytest.raises(ConfigError, match="needs none"):
        open_embedder("minilm", HttpEmbedding(), tiny_model)


def test_minilm_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("ava_core.retrieval.embedding.minilm.PACKAGE", "no_such_package")
    with pytest.raises(AvaError, match=r"install ava-moe\[retrieval\]"):
        MiniLM.open()
