"""`ava index` as a library and as a command: the documents, the vectors, and an index that is brought up to date."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from ava_core.cli.main import app
from ava_core.config.retrieval import RetrievalConfig
from ava_core.errors import AvaError, ConfigError
from ava_core.progress import Progress
from ava_core.retrieval import build as building
from ava_core.retrieval.build import build_index
from ava_core.retrieval.folder import Index
from ava_core.runtime.digests import digest_tree

QUIET = Progress(quiet=True)


class Letters:
    """An embedding by the letters of a text, which says what it was asked for."""

    identity, dimension, max_tokens = "letters", 26, 40

    def __init__(self):
        self.asked = []

    def count_tokens(self, texts):
        return [len(text.split()) for text in texts]

    def embed(self, texts):
        self.asked += texts
        counts = np.array([[1 + text.lower().count(chr(97 + n)) for n in range(26)] for text in texts], np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture
def letters(monkeypatch):
    embedder = Letters()
    monkeypatch.setattr(building, "open_embedder", lambda *_: embedder)
    return embedder


@pytest.fixture
def make(tmp_path, tiny_shards):
    """Build an index of texts in a folder of its own."""

    def build(name, texts=None, previous=None, **settings):
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        for path in data.iterdir():
            path.unlink()
        for document, text in (texts or {}).items():
            (data / f"{document}.txt").write_text(text)
        sources = {"sources": [{"path": "*.txt", **settings.pop("source", {})}]} if texts is not None else {}
        config = RetrievalConfig.model_validate({**sources, "passage_tokens": 32, "overlap_tokens": 8, **settings})
        output, state = tmp_path / name, tmp_path / f"{name}.state"
        output.mkdir()
        state.mkdir(exist_ok=True)
        built = build_index(
            config,
            shards=tiny_shards,
            data=data,
            model=None,
            previous=previous,
            output=output,
            state=state,
            threads=1,
            progress=QUIET,
        )
        return output, built.metrics

    return build


def texts(*names):
    return {name: "\n\n".join(f"{name} says the number {n}. Then more of {name}." for n in range(30)) for name in names}


def test_without_sources_the_training_split_is_indexed_and_nothing_else(make, tiny_shards, corpus_text):
    output, metrics = make("index", embedding="none")
    index = Index.open(output, verify=True)
    assert metrics["documents"] == len({passage.document for passage in index.passages})
    assert {passage.document.split("-")[0] for passage in index.passages} == {"train"}
    assert metrics["passages"] == len(index) > 50
    assert metrics["tokens_per_passage"] <= 40
    assert index.manifest.dimension == 0


def test_the_same_text_gives_the_same_bytes(make, letters):
    first, second = make("first", texts("ann", "bob"))[0], make("second", texts("ann", "bob"))[0]
    assert digest_tree(first) == digest_tree(second)


def test_only_what_is_new_is_embedded_and_the_index_is_as_if_built_anew(make, letters):
    old, _ = make("old", texts("ann", "bob", "cyn"))
    now = texts("ann", "cyn", "dan") | {"cyn": texts("cyn")["cyn"].replace("number 3.", "letter c.")}
    letters.asked.clear()
    updated, metrics = make("updated", now, previous=old)
    assert all("dan" in text or "letter c" in text for text in letters.asked)
    assert metrics["embedded"] == len(letters.asked) < metrics["taken_over"]
    fresh, all_new = make("fresh", now)
    assert digest_tree(updated) == digest_tree(fresh)
    assert all_new["taken_over"] == 0
    assert Index.open(updated).search("bob", None, 5, mode="lexical") == []


def test_an_interrupted_build_goes_on_with_the_vectors_that_it_has(make, letters, monkeypatch, tmp_path):
    monkeypatch.setattr(building, "CHUNK", 16)
    whole, _ = make("whole", texts("ann", "bob", "cyn"))
    asked = len(letters.asked)

    def stop(given):
        if len(letters.asked) >= 32:
            raise KeyboardInterrupt
        return Letters.embed(letters, given)

    letters.asked.clear()
    monkeypatch.setattr(letters, "embed", stop)
    with pytest.raises(KeyboardInterrupt):
        make("again", texts("ann", "bob", "cyn"))
    monkeypatch.undo()
    monkeypatch.setattr(building, "open_embedder", lambda *_: letters)
    monkeypatch.setattr(building, "CHUNK", 16)
    (tmp_path / "again").rmdir()
    again, metrics = make("again", texts("ann", "bob", "cyn"))
    assert len(letters.asked) == asked == metrics["embedded"]
    assert digest_tree(again) == digest_tree(whole)


def test_an_index_of_another_embedding_is_refused_by_name(make, letters):
    old, _ = make("old", texts("ann"))
    letters.identity = "numbers"
    with pytest.raises(AvaError, match=r"letters.*numbers"):
        make("new", texts("ann"), previous=old)


def test_passages_that_the_embedding_cuts_are_counted_and_said(make, letters, caplog):
    letters.max_tokens = 5
    _, metrics = make("index", texts("ann"))
    assert metrics["truncated"] == metrics["passages"]
    assert "lower retrieval.passage_tokens" in caplog.text


def test_sources_without_text_are_refused(make):
    with pytest.raises(AvaError, match="no passages"):
        make("index", {"empty": " \n\n"}, embedding="none")


def test_text_that_can_not_be_read_is_refused_by_name(make, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(AvaError, match=r"broken\.jsonl"):
        config = {"path": str(tmp_path / "broken.jsonl"), "format": "jsonl"}
        (tmp_path / "broken.jsonl").write_bytes(b'{"text": "\xff\xfe"}\n')
        make("index", {"a": "b"}, source=config, embedding="none")


def test_only_callers_with_the_label_find_labelled_sources(make, letters):
    output, _ = make("index", texts("ann"), source={"label": "staff"})
    index = Index.open(output)
    vector = letters.embed(["ann"])[0]
    assert index.search("ann", vector, 5) == []
    assert index.search("ann", vector, 5, labels={"guests"}) == []
    assert len(index.search("ann", vector, 5, labels={"staff"})) == 5


def test_settings_that_contradict_are_refused():
    with pytest.raises(ValueError, match=r"overlap_tokens = 20: is more than half"):
        RetrievalConfig(passage_tokens=32, overlap_tokens=20)


def test_command_indexes_and_search_finds(tmp_path, tiny_shards, make_params):
    params = make_params(retrieval={"embedding": "none", "passage_tokens": 32, "overlap_tokens": 0})
    out = tmp_path / "index"

    def ava(*arguments):
        outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if outcome.exception and not isinstance(outcome.exception, SystemExit):
            raise outcome.exception
        return outcome.stdout

    ava("index", "--shards", tiny_shards, "--output", out, "--params", params, "--work", tmp_path / "work")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["passages"] == len(Index.open(out, verify=True))
    passage = Index.open(out).passages[7]
    rows = [json.loads(line) for line in ava("search", passage.text, "--index", out, "--json").splitlines()]
    assert rows[0]["text"] == passage.text
    assert rows[0]["document"] == passage.document
    assert (rows[0]["start"], rows[0]["end"]) == (passage.start, passage.end)
    shown = ava("search", passage.text, "--index", out, "--top-k", "1")
    assert shown.startswith(f"1. {passage.document} {passage.start}-{passage.end} | ")
    assert ava("search", "xyzzy", "--index", out) == "nothing found\n"
    for arguments, fault in [
        (("",), "is empty"),
        (("a" * 100_000,), "100,000 characters"),
        (("a", "--mode", "both"), "must be one of"),
        (("a", "--mode", "dense"), "needs vectors"),
        (("a", "--model", tmp_path), "needs none"),
    ]:
        with pytest.raises((ConfigError, AvaError), match=fault):
            ava("search", *arguments, "--index", out)
