"""A datastore of the training text beside the float model: figures, what it may hold, interruption, the report."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ava_core.config.evaluate import EvaluateConfig
from ava_core.data.reencoding import read_documents
from ava_core.data.shard_writing import TokenizedDocument, write_split, write_splits_info
from ava_core.data.shards import ShardedSplit, document_names, load_splits_info
from ava_core.data.tokenizer import load_tokenizer
from ava_core.errors import AvaError
from ava_core.evaluation.nearest_tokens import NearestTokens
from ava_core.progress import Progress
from ava_core.retrieval.knn import kept as keeping
from ava_core.runtime.digests import digest_tree
from tests.conftest import _finished

NEIGHBOURS = 24
CONFIG = EvaluateConfig(batch_size=4, knn={"neighbours": NEIGHBOURS})
SEQUENCE_LENGTH = 64


def run(model: Path, shards: Path, state: Path) -> NearestTokens:
    state.mkdir(exist_ok=True)
    nearest = NearestTokens.open(CONFIG, model, shards, SEQUENCE_LENGTH, state, 1)
    nearest.run(Progress(quiet=True))
    return nearest


@pytest.fixture(scope="module")
def alone(tiny_model, tiny_shards, tmp_path_factory):
    state = tmp_path_factory.mktemp("knn") / "state"
    return SimpleNamespace(state=state, nearest=run(tiny_model, tiny_shards, state))


def planted(shards: Path, folder: Path, *, only: bool = False) -> Path:
    """The shards with two more training documents: one of the test split, and an edited one of validation; or these
    alone."""
    shutil.copytree(shards, folder)
    tokenizer, info = load_tokenizer(shards / "tokenizer"), load_splits_info(shards)
    texts = {
        name: read_documents(ShardedSplit.open(shards, name), shards / "tokenizer")
        for name in ("train", "validation", "test")
    }
    copies = {"copy": texts["test"][0], "edited": texts["validation"][0].replace(" the ", " that ", 5) + " End."}
    named = {} if only else dict(zip(document_names(shards, "train"), texts["train"], strict=True))
    first = list(named.items())[:3]
    documents = [
        TokenizedDocument(name, np.asarray(tokenizer(text)["input_ids"], np.uint16), len(text.encode()))
        for name, text in [*first, *copies.items(), *list(named.items())[3:]]
    ]
    shutil.rmtree(folder / "train")
    counts = write_split(
        folder / "train", documents, vocab_size=info.vocab_size, boundary_token_id=0, shard_tokens=8_192
    )
    write_splits_info(folder, replace(info, splits={**info.splits, "train": counts}))
    return _finished(folder, "preprocess", {"data": "1" * 64})


def test_figures_are_of_the_mixture_and_of_the_whole_training_split(alone, evaluated, tiny_shards):
    figures = alone.nearest.figures
    bits = evaluated.metrics["test_bits_per_byte"]
    assert figures["knn_test_bits_per_byte"] + figures["knn_gain_bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    assert figures["knn_gain_bits_per_byte"] > 0.01 and 0 < figures["knn_lambda"] < 0.7
    assert figures["knn_datastore_tokens"] == ShardedSplit.open(tiny_shards, "train").num_tokens
    assert figures["knn_documents_left_out"] == 0 and alone.nearest.contents()["knn"]["left_out"] == []
    assert alone.nearest.timings["knn_ms_per_token"] > 0


def test_planted_copies_of_scored_documents_are_not_in_the_datastore(alone, tiny_model, tiny_shards, tmp_path):
    shards = planted(tiny_shards, tmp_path / "shards")
    found = run(tiny_model, shards, tmp_path / "state")
    assert found.left_out == ["copy", "edited"] == found.contents()["knn"]["left_out"]
    assert found.figures == {**alone.nearest.figures, "knn_documents_left_out": 2}
    assert (tmp_path / "state/knn/datastore/lists/vectors.npy").read_bytes() == (
        alone.state / "knn/datastore/lists/vectors.npy"
    ).read_bytes()


def test_training_text_that_is_all_copies_is_refused(tiny_model, tiny_shards, tmp_path):
    shards = planted(tiny_shards, tmp_path / "shards", only=True)
    with pytest.raises(AvaError, match=r"every document of the training split repeats one .*neighbours to 0"):
        run(tiny_model, shards, tmp_path / "state")


@pytest.mark.parametrize("calls", [2, 9])
def test_killed_measurement_goes_on_to_the_same_bytes(
    alone, tiny_model, tiny_shards, tmp_path, monkeypatch, calls: int
):
    monkeypatch.setattr(keeping, "SAVE_EVERY_SECONDS", 0)
    append, counted = keeping.KeptRows.append, []

    def die(self, values):
        append(self, values)
        if self.path.name == "test.npy":
            counted.append(self.batches)
            if len(counted) == calls:
                raise KeyboardInterrupt

    monkeypatch.setattr(keeping.KeptRows, "append", die)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tiny_shards, tmp_path / "state")
    again = run(tiny_model, tiny_shards, tmp_path / "state")
    assert counted == list(range(1, len(counted) + 1))  # no batch was looked up twice
    assert again.figures == alone.nearest.figures
    for name in ("test.npy", "validation.npy", "datastore/lists/vectors.npy", "datastore/lists/lists.bin"):
        assert (tmp_path / "state/knn" / name).read_bytes() == (alone.state / "knn" / name).read_bytes()


@pytest.fixture(scope="module")
def measured(run_evaluation, tmp_path_factory):
    return run_evaluation(tmp_path_factory.mktemp("measured"), {"knn": {"neighbours": NEIGHBOURS}})


def test_evaluation_has_the_figures_and_the_report_a_section(measured, alone, evaluated):
    assert measured.metrics == {**evaluated.metrics, **alone.nearest.figures}
    assert set(measured.timings) == {"knn_ms_per_token"}
    contents = json.loads((measured.output / "evaluation.json").read_text())
    assert contents["knn"]["knn_lambda"] == contents["figures"]["float"]["knn_lambda"]
    page, without = ((folder / "report.html").read_text() for folder in (measured.output, evaluated.output))
    assert "<h2>With the training text at hand</h2>" in page and "With the training text" not in without
    assert f"{measured.metrics['knn_test_bits_per_byte']:.4f}" in page


@pytest.mark.slow
def test_the_same_evaluation_gives_the_same_bytes(measured, run_evaluation, tmp_path):
    again = run_evaluation(tmp_path, {"knn": {"neighbours": NEIGHBOURS}})
    assert digest_tree(again.output) == digest_tree(measured.output)
