"""/v1/search and /v1/embeddings, by OpenAI's client, by nonsense, and by an index of another server."""

import base64
import threading
import time
from typing import get_type_hints

import numpy as np
import openai
import pytest
from openai.types import EmbeddingCreateParams

from ava_core.config.retrieval import HttpEmbedding
from ava_core.retrieval.embedding.embedder import unit
from ava_core.retrieval.embedding.http import HttpServer
from ava_core.retrieval.folder import Index
from ava_core.retrieval.retriever import Retriever
from ava_core.serving.http import lookups
from ava_core.serving.http.limits import Limits
from ava_core.serving.http.retrieval_fields import EmbeddingRequest
from tests.retrieval.made import build
from tests.serving.http.conftest import wait_until
from tests.serving.http.indexes import TEXTS, Letters, made_of, passage
from tests.serving.http.test_bad_clients import post, works

NAME = Letters.identity
EMBED = {"model": NAME, "input": "a newt"}


@pytest.fixture
def looking(serve, tmp_path):
    return serve(retriever=made_of(tmp_path / "index", TEXTS, embedder=Letters()))


def test_a_search_gives_the_passages_with_their_sources(looking):
    status, answer = post(looking, {"query": "the lost handkerchief", "top_k": 2, "mode": "lexical"}, "/v1/search")
    assert status == 200 and answer["object"] == "list"
    first = answer["data"][0]
    assert (first["document"], first["text"], first["start"]) == ("play3.md", TEXTS[3], 10)
    assert first["lexical_rank"] == 1 and first["dense_rank"] is None
    _, answer = post(looking, {"query": "the lost handkerchief"}, "/v1/search")
    assert len(answer["data"]) == 4 and answer["data"][0]["dense_rank"] == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "query: must be given"),
        ({"query": " \n"}, "query: is empty"),
        ({"query": "a" * 100_000}, "query: has 100,000 characters: at most 8,192"),
        ({"query": "\ud800"}, "query: isn't valid Unicode"),
        ({"query": "a", "top_k": 1001}, "top_k = 1001"),
        ({"query": "a", "mode": "deep"}, "mode = 'deep'"),
        ({"query": "a", "limit": 3}, "limit: is no field"),
        ({"query": 5}, "query = 5"),
        (b"[" * 10_000, "nested"),
    ],
)
def test_a_search_that_is_none_is_refused_by_name(looking, body, says):
    status, answer = post(looking, body, "/v1/search")
    assert status == 400 and says in answer["error"]["message"]
    assert works(looking)


def test_openai_s_client_gets_vectors_and_their_usage(looking, client_of):
    client, texts = client_of(looking), ["a newt", "z" * 61]
    expected = Letters().embed(texts)
    for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}, {"dimensions": 26}):
        answer = client.embeddings.create(model=NAME, input=texts, **options)
        vectors = [one.embedding for one in answer.data]
        if options.get("encoding_format") == "base64":  # asked for by name, it comes as it is
            vectors = [np.frombuffer(base64.b64decode(text), "<f4") for text in vectors]
        np.testing.assert_array_equal(np.array(vectors, np.float32), expected)
        assert [one.index for one in answer.data] == [0, 1] and answer.model == NAME
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (66, 66)
        assert answer.model_extra["truncated"] == 1
    assert len(client.embeddings.create(model=NAME, input="a newt").data) == 1


def test_every_parameter_of_openai_s_embeddings_is_known():
    assert set(get_type_hints(EmbeddingCreateParams)) - set(EmbeddingRequest.model_fields) == set()


def test_the_embedding_is_listed_as_a_model_after_the_others(looking, client_of):
    listed = client_of(looking).models.list().data
    assert [one.id for one in listed] == ["ava-test", NAME]
    assert client_of(looking).models.retrieve(NAME).model_extra["dimension"] == 26
    with pytest.raises(openai.NotFoundError, match="ava-test is"):
        client_of(looking).completions.create(model=NAME, prompt="a")


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"model": "text-embedding-3-small"}, 404, f"isn't this index's embedding: {NAME} is"),
        ({"model": "ava-test"}, 404, f"isn't this index's embedding: {NAME} is"),
        ({"input": []}, 400, "input: must be a string or a list of strings"),
        ({"input": ""}, 400, "input = '': text 0 is empty"),
        ({"input": ["a", ""]}, 400, "input: text 1 is empty"),
        ({"input": [1, 2]}, 400, "token ids aren't taken"),
        ({"input": [[1]]}, 400, "token ids aren't taken"),
        ({"input": ["a"] * 2049}, 400, "holds 2,049 texts: at most 2,048"),
        ({"input": "a" * 32_769}, 400, "has 32,769 characters: at most 32,768"),
        ({"input": "\ud800"}, 400, "text 0 isn't valid Unicode"),
        ({"encoding_format": "int8"}, 400, "encoding_format = 'int8'"),
        ({"dimensions": 8}, 400, "dimensions = 8: must be 26"),
        ({"truncate": True}, 400, "truncate: is no field"),
    ],
)
def test_vectors_that_can_t_be_had_are_refused_by_name(looking, changes, status, says):
    found, answer = post(looking, {**EMBED, **changes}, "/v1/embeddings")
    assert found == status and says in answer["error"]["message"]
    assert answer["error"]["param"] in (*changes, None)


def test_bodies_are_limited_as_elsewhere(serve, tmp_path):
    retriever = made_of(tmp_path / "index", TEXTS, embedder=Letters())
    server = serve(retriever=retriever, limits=Limits(body_bytes=2000))
    for path, body in (("/v1/search", {"query": "a" * 3000}), ("/v1/embeddings", {**EMBED, "input": "a" * 3000})):
        assert post(server, body, path)[0] == 413


def test_without_an_index_and_without_vectors_the_paths_say_so(serve, tmp_path):
    bare, lexical = serve(), serve(retriever=made_of(tmp_path / "index", TEXTS))
    for path, body in (("/v1/search", {"query": "a"}), ("/v1/embeddings", EMBED)):
        status, answer = post(bare, body, path)
        assert status == 404 and answer["error"]["code"] == "no_index" and "--index" in answer["error"]["message"]
    status, answer = post(lexical, EMBED, "/v1/embeddings")
    assert status == 404 and answer["error"]["code"] == "no_embedding"
    assert post(lexical, {"query": "newt"}, "/v1/search")[1]["data"][0]["document"] == "play1.md"
    assert post(lexical, {"query": "newt", "mode": "hybrid"}, "/v1/search")[1]["error"]["param"] == "mode"


def test_a_search_has_its_turn_between_the_texts_that_are_embedded(serve, tmp_path):
    slow = Letters()
    server = serve(retriever=made_of(tmp_path / "index", TEXTS, embedder=slow))
    begun, embed = threading.Event(), slow.embed

    def slowly(texts):
        begun.set()
        time.sleep(0.1)
        return embed(texts)

    slow.embed = slowly
    answers = []
    body = {**EMBED, "input": ["a"] * (20 * lookups.EMBEDDED_AT_ONCE)}
    thread = threading.Thread(target=lambda: answers.append(post(server, body, "/v1/embeddings")))
    thread.start()
    assert begun.wait(60)
    assert post(server, {"query": "newt"}, "/v1/search")[0] == 200
    assert not answers  # the other is still being embedded
    thread.join(60)
    assert answers[0][0] == 200 and len(answers[0][1]["data"]) == len(body["input"])


def test_a_client_that_leaves_ends_its_embedding(serve, tmp_path, client_of):
    slow = Letters()
    server = serve(retriever=made_of(tmp_path / "index", TEXTS, embedder=slow))
    calls, embed = [], slow.embed

    def slowly(texts):
        calls.append(len(texts))
        time.sleep(0.2)
        return embed(texts)

    slow.embed = slowly
    with pytest.raises(openai.APITimeoutError):
        client_of(server).embeddings.create(model=NAME, input=["a"] * 2000, timeout=0.3)
    wait_until(lambda: post(server, {"query": "newt"}, "/v1/search")[0] == 200)
    assert len(calls) < 20  # of 125


def test_an_index_is_built_and_searched_through_another_server(serve, tmp_path):
    first = serve(retriever=made_of(tmp_path / "first", TEXTS, embedder=Letters()))
    http = HttpServer(HttpEmbedding(url=f"{first.address}/v1", model=NAME, batch=3))
    given = [passage(text, at) for at, text in enumerate(TEXTS)]
    vectors = http.embed([one.searched for one in given])
    np.testing.assert_allclose(vectors, unit(Letters().embed([one.searched for one in given])), rtol=1e-6)
    build(tmp_path / "second", given, vectors)
    second = serve(retriever=Retriever(Index.open(tmp_path / "second"), http))
    wanted = {"query": "a handkerchief is lost", "mode": "dense", "top_k": 1}
    assert post(second, wanted, "/v1/search") == post(first, wanted, "/v1/search")
    status, answer = post(second, {**EMBED, "model": f"http:{NAME}"}, "/v1/embeddings")
    assert status == 200 and answer["usage"]["prompt_tokens"] == len("a newt")  # by the served model's tokenizer
    np.testing.assert_allclose(answer["data"][0]["embedding"], Letters().embed(["a newt"])[0], rtol=1e-6)
