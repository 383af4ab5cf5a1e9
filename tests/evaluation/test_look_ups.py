"""An index beside the evaluation: its figures, its questions, the report, the gate's view."""

import json
import re

import pytest

from ava_core.config.retrieval import RetrievalConfig
from ava_core.errors import AvaError
from ava_core.progress import Progress
from ava_core.retrieval.build import build_index
from ava_core.runtime.digests import digest_tree
from tests.conftest import _finished


@pytest.fixture(scope="module")
def index(tmp_path_factory, tiny_shards, tiny_model):
    root = tmp_path_factory.mktemp("indexed")
    output, state = root / "index", root / "state"
    output.mkdir()
    state.mkdir()
    config = RetrievalConfig(embedding="model", passage_tokens=48, overlap_tokens=0)
    build_index(
        config,
        shards=tiny_shards,
        data=None,
        model=tiny_model,
        previous=None,
        output=output,
        state=state,
        threads=1,
        progress=Progress(quiet=True),
    )
    return _finished(output, "index", {})


@pytest.fixture(scope="module")
def measured(run_evaluation, index, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    return run_evaluation(folder, {"retrieval": {"count": 40}}, index=index)


def test_figures_of_every_way_to_search_are_metrics_and_the_gate_s(measured):
    contents = json.loads((measured.output / "evaluation.json").read_text())
    for name in ("recall_1", "recall_5", "recall_10", "mrr_10", "ndcg_10"):
        assert contents["figures"]["float"][f"retrieval_{name}"] == measured.metrics[f"retrieval_{name}"]
        for mode in ("lexical", "dense"):
            assert 0 <= measured.metrics[f"retrieval_{mode}_{name}"] <= 1
    assert measured.metrics["retrieval_lexical_recall_10"] > 0.8
    assert set(measured.timings) == {"retrieval_p50_ms", "retrieval_p99_ms"}
    assert contents["retrieval"]["questions"] == 40


def test_each_question_is_a_line_with_what_was_found(measured):
    rows = [json.loads(line) for line in (measured.output / "retrieval.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    right = [row["rank"]["lexical"] is not None and row["rank"]["lexical"] <= 10 for row in rows]
    assert sum(right) / 40 == measured.metrics["retrieval_lexical_recall_10"]
    assert all(len(row["found"]["hybrid"]) == 10 for row in rows)


def test_report_shows_questions_with_their_passages(measured, evaluated):
    page = (measured.output / "report.html").read_text()
    contents = json.loads((measured.output / "evaluation.json").read_text())
    assert "<h2>Looked up</h2>" in page
    for shown in contents["retrieval"]["shown"]:
        assert re.sub(r"\W+", " ", shown["question"]).strip() in re.sub(r"\W+", " ", page.replace("&#39;", "'"))
    assert "<h2>Looked up</h2>" not in (evaluated.output / "report.html").read_text()


def test_what_was_looked_up_changes_nothing_else(measured, evaluated):
    assert {**evaluated.metrics, **measured.metrics} == measured.metrics


def test_questions_of_a_file_are_asked(run_evaluation, index, tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"question": "the king", "source": "train-0"}\n')
    settings = {"retrieval": {"questions": str(tmp_path / "questions.jsonl")}}
    asked = run_evaluation(tmp_path / "asked", settings, index=index)
    [row] = [json.loads(line) for line in (asked.output / "retrieval.jsonl").read_text().splitlines()]
    assert (row["question"], row["source"]) == ("the king", {"document": "train-0"})


def test_the_same_index_gives_the_same_bytes(run_evaluation, index, measured, tmp_path):
    again = run_evaluation(tmp_path, {"retrieval": {"count": 40}}, index=index)
    assert digest_tree(again.output) == digest_tree(measured.output)


def test_a_folder_that_is_no_index_is_refused(run_evaluation, tiny_model, tmp_path):
    with pytest.raises(AvaError, match=r"index"):
        run_evaluation(tmp_path, index=tiny_model)
