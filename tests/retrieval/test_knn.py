"""kNN-LM: what neighbours say beside literal arithmetic, the datastore, documents that it must not hold."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ava_core.data.batches import document_ids, scoring_windows
from ava_core.data.shards import ShardedSplit
from ava_core.generation.loading import load_model
from ava_core.retrieval.knn import datastore as storing
from ava_core.retrieval.knn import kept as keeping
from ava_core.retrieval.knn.datastore import Datastore
from ava_core.retrieval.knn.duplicates import repeated
from ava_core.retrieval.knn.kept import KeptRows
from ava_core.retrieval.knn.mixing import LAMBDAS, TEMPERATURES, Mixture, mixed_nats, target_probabilities
from ava_core.retrieval.knn.states import Reader
from ava_core.retrieval.vectors_build import VectorsWriter
from tests.retrieval.made import contents, unit_vectors

LENGTH, ROWS = 64, 4


@pytest.fixture(scope="module")
def reader(tiny_model):
    return Reader(load_model(tiny_model, 1)[0], sequence_length=LENGTH, boundary_token_id=0, batch_size=ROWS)


@pytest.fixture(scope="module")
def train(tiny_shards):
    return ShardedSplit.open(tiny_shards, "train").tokens


@pytest.fixture(scope="module")
def built(reader, train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("datastore") / "built"
    return SimpleNamespace(folder=folder, store=Datastore.build(folder, reader, train, lambda done: None))


def literal_probability(keys, values, query, target, neighbours, temperature):
    """Equation 2 of the paper, one neighbour after the other."""
    distances = [float(((key - query) ** 2).sum()) for key in keys]
    nearest = sorted(range(len(keys)), key=distances.__getitem__)[:neighbours]
    weights = {number: math.exp(-distances[number] / temperature) for number in nearest}
    return sum(weight for number, weight in weights.items() if values[number] == target) / sum(weights.values())


def test_probabilities_are_those_of_the_paper(tmp_path):
    keys, rng = unit_vectors(500), np.random.default_rng(1)
    values, targets = rng.integers(4, size=500), rng.integers(4, size=6)
    queries = unit_vectors(6, seed=2)
    (tmp_path / "lists").mkdir()
    writer = VectorsWriter(tmp_path / "lists", keys.shape[1])
    writer.add(keys)
    writer.close()
    store = Datastore(storing.Vectors(tmp_path / "lists"), values)
    found = store.target_probabilities(queries, targets, 20)
    kept = keys.astype(np.float16).astype(np.float64)
    for row, (query, target) in enumerate(zip(queries, targets, strict=True)):
        for column, temperature in enumerate(TEMPERATURES):
            expected = literal_probability(kept, values, query, target, 20, temperature)
            assert found[row, column] == pytest.approx(expected, abs=2e-3)


def test_probabilities_of_all_tokens_sum_to_one_and_need_a_neighbour():
    distances = np.asarray([[0.1, 0.3, 3.9], [0.2, np.inf, np.inf], [np.inf] * 3], np.float32)
    values = np.asarray([[0, 1, 1], [1, 0, 0], [0, 0, 0]])
    zero, one = (target_probabilities(distances, values, np.full(3, token), (0.01, 0.5)) for token in (0, 1))
    np.testing.assert_allclose((zero + one)[:2], 1)
    assert not zero[2].any() and not one[2].any()
    assert zero[0, 1] == pytest.approx(1 / (1 + math.exp(-0.4) + math.exp(-7.6)), rel=1e-5)
    assert one[1].tolist() == [1, 1]


def test_mixture_is_chosen_by_the_least_loss():
    rng = np.random.default_rng(0)
    nats, probability = rng.exponential(2, 300), rng.random((300, len(TEMPERATURES))) * 0.2
    probability[:, 4] += 0.3
    mixture = Mixture.choose(nats, probability)
    losses = {
        (temperature, weight): -np.log(weight * probability[:, column] + (1 - weight) * np.exp(-nats)).sum()
        for column, temperature in enumerate(TEMPERATURES)
        for weight in LAMBDAS
    }
    assert (mixture.temperature, mixture.weight) == min(losses, key=losses.__getitem__)
    assert mixture.nats(nats, probability).sum() == pytest.approx(min(losses.values()))
    assert mixture.temperature == TEMPERATURES[4] and mixture.weight > 0


def test_neighbours_that_know_nothing_leave_the_model_alone():
    nats = np.linspace(0.1, 5, 50)
    mixture = Mixture.choose(nats, np.zeros((50, len(TEMPERATURES))))
    assert mixture.weight == 0
    np.testing.assert_allclose(mixed_nats(nats, np.zeros(50), 0), nats)


def test_key_is_what_goes_into_the_last_experts_before_its_token(built, train, tiny_model):
    model = load_model(tiny_model)[0].model
    last, vectors, first = model.layers[-1], built.store.vectors, 0
    for batch in scoring_windows(train, LENGTH, 0, batch_size=ROWS):
        ids = torch.from_numpy(document_ids(batch.inputs, 0))
        with torch.no_grad():
            before = model(torch.from_numpy(batch.inputs), document_ids=ids, output_hidden_states=True).hidden_states[
                -2
            ]
            rotary = model.rotary_emb(torch.arange(LENGTH)[None])
            seen = (ids[:, None, :, None] == ids[:, None, None, :]) & torch.ones(
                LENGTH, LENGTH, dtype=torch.bool
            ).tril()
            after = before + last.self_attn(last.input_layernorm(before), rotary, seen, None)
            states = last.post_attention_layernorm(after)[torch.from_numpy(batch.mask)].numpy()
        states /= np.linalg.norm(states, axis=1, keepdims=True)
        here = np.arange(first, first + len(states))
        np.testing.assert_allclose(vectors.vectors(here), states, atol=1e-3)
        assert built.store.values[here].tolist() == batch.targets[batch.mask].tolist()
        first += len(states)
    assert len(vectors) == first == len(train)


def test_nearest_of_a_context_of_the_datastore_is_itself(reader, built, train):
    keys = next(reader.keys(train))
    numbers, products = built.store.vectors.search_many(keys, 8, 1_000)
    assert (numbers == np.arange(len(keys))[:, None]).any(axis=1).mean() > 0.95  # others are as near within 8 bits
    np.testing.assert_allclose(products[:, 0], 1, atol=5e-3)


def test_of_many_keys_the_inverted_file_finds_those_of_the_comparison(tmp_path):
    keys, queries = unit_vectors(4_000), unit_vectors(20, seed=5)
    found = {}
    for name, exact_most in (("exact", 10_000), ("lists", 1_000)):
        (tmp_path / name).mkdir()
        writer = VectorsWriter(tmp_path / name, keys.shape[1], exact_most=exact_most)
        writer.add(keys)
        writer.close()
        found[name] = storing.Vectors(tmp_path / name).search_many(queries, 50, 3)
    assert (tmp_path / "lists" / "lists.bin").is_file() and not (tmp_path / "exact" / "lists.bin").exists()
    shared = [len({*one} & {*other}) for one, other in zip(found["exact"][0], found["lists"][0], strict=True)]
    assert np.mean(shared) > 45
    np.testing.assert_allclose(found["exact"][1], found["lists"][1], atol=0.02)


def test_where_fewer_keys_are_the_rest_is_nothing(tmp_path):
    for exact_most in (10, 0):
        folder = tmp_path / str(exact_most)
        folder.mkdir()
        writer = VectorsWriter(folder, 16, exact_most=exact_most)
        writer.add(unit_vectors(3))
        writer.close()
        numbers, products = storing.Vectors(folder).search_many(unit_vectors(2, seed=1), 5, 9)
        assert sorted(numbers[0].tolist()) == [-1, -1, 0, 1, 2]
        assert np.isneginf(products[:, 3:]).all() and np.isfinite(products[:, :3]).all()


def test_killed_build_goes_on_to_the_same_bytes(reader, built, train, tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "SAVE_EVERY_SECONDS", 0)
    calls = []

    def die(done):
        calls.append(done)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Datastore.build(tmp_path / "knn", reader, train, die)
    with (tmp_path / "knn" / "keys.npy").open("ab") as file:
        file.write(b"what was on its way")
    done = []
    Datastore.build(tmp_path / "knn", reader, train, done.append)
    assert done[0] == 4 * LENGTH * ROWS  # three batches weren't made again
    assert contents(tmp_path / "knn" / "lists") == contents(built.folder / "lists")


def test_finished_datastore_is_opened_without_the_model(built, train):
    assert len(Datastore.build(built.folder, None, train, None).vectors) == len(train)


def test_rows_that_were_not_safe_are_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "SAVE_EVERY_SECONDS", 1e9)
    KeptRows(tmp_path / "rows.npy", np.int64, (2,)).append(np.ones((4, 2)))
    rows = KeptRows(tmp_path / "rows.npy", np.int64, (2,))
    assert rows.batches == rows.rows == 0
    rows.append(np.arange(6).reshape(3, 2))
    assert rows.finish().tolist() == [[0, 1], [2, 3], [4, 5]]
    assert KeptRows(tmp_path / "rows.npy", np.int64, (2,)).finish().tolist() == [[0, 1], [2, 3], [4, 5]]


def test_documents_that_repeat_a_scored_one_are_found(corpus_text):
    scored = [corpus_text[:4_000], corpus_text[4_000:8_000]]
    words = scored[1].split(" ")
    words[::60] = ["changed"] * len(words[::60])
    documents = [
        corpus_text[20_000:24_000],
        scored[0],
        " ".join(words),
        scored[1].upper(),
        corpus_text[24_000:28_000] + scored[0] + corpus_text[28_000:32_000],
        scored[0][500:2_500],
        scored[0][:1_000] + corpus_text[32_000:36_000],
        "",
    ]
    assert repeated(documents, scored) == [1, 2, 3, 4, 5]
    assert repeated(documents, []) == []
    assert repeated(["", "one"], [""]) == [0]
