"""`evaluate.continuations`: what its figures say of texts whose answer is known, and what is refused."""

import json

import pytest

from ava_core.config.evaluate import ContinuationsConfig
from ava_core.data.shards import ShardedSplit
from ava_core.data.tokenizer import load_tokenizer
from ava_core.errors import ConfigError
from ava_core.evaluation.continuations import open_passages
from ava_core.evaluation.text_metrics import against_references, among_themselves

LINES = ["the king is dead and gone", "come hither my good lord now", "what news from the north today"]


def test_copies_of_a_reference_score_full_and_other_words_nothing():
    same = against_references(LINES, [["nothing like it", line] for line in LINES])
    assert (same["exact_match"], same["rouge_l"]) == (1, 1)
    assert same["bleu"] == pytest.approx(100)
    assert same["chrf"] == pytest.approx(100)
    other = against_references(["xxx yyy zzz qqq"] * 3, [[line] for line in LINES])
    assert (other["exact_match"], other["rouge_l"]) == (0, 0)
    assert other["bleu"] < 5
    assert other["chrf"] < 5


def test_white_space_breaks_no_exact_match_and_order_counts_in_rouge():
    assert against_references(["the  king\n"], [["the king"]])["exact_match"] == 1
    half = against_references(["dead is king the"], [["the king is dead"]])
    assert 0 < half["rouge_l"] < 0.5
    assert half["exact_match"] == 0


def test_texts_that_differ_have_low_self_bleu_and_equal_ones_full():
    assert among_themselves([LINES[0]] * 3)["self_bleu"] == pytest.approx(100)
    varied = among_themselves(LINES)
    assert varied["self_bleu"] < 30
    assert varied["continuation_distinct_1"] > among_themselves([LINES[0]] * 3)["continuation_distinct_1"]
    assert "self_bleu" not in among_themselves(LINES[:1])


@pytest.fixture(scope="module")
def continued(run_evaluation, tmp_path_factory):
    settings = {"continuations": {"count": 12, "prompt_tokens": 24, "new_tokens": 12}}
    return run_evaluation(tmp_path_factory.mktemp("continued"), settings)


def test_step_measures_continuations_of_the_test_split(continued, run_evaluation, tmp_path):
    metrics = continued.metrics
    for name in ("bleu", "chrf", "rouge_l", "exact_match", "self_bleu", "continuation_distinct_2", "coherence"):
        assert name in metrics
    # Text that follows its prompt is likelier after that one than after another.
    assert metrics["reference_coherence"] > 0
    rows = [json.loads(line) for line in (continued.output / "continuations.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert all(row["text"] != row["prompt"] for row in rows)
    again = run_evaluation(tmp_path, {"continuations": {"count": 12, "prompt_tokens": 24, "new_tokens": 12}})
    assert (again.output / "continuations.jsonl").read_bytes() == (
        continued.output / "continuations.jsonl"
    ).read_bytes()
    assert again.metrics == metrics
    assert "BLEU of continuations" in (continued.output / "report.html").read_text()


def test_references_of_a_file_are_read_line_by_line_and_faults_named(tiny_shards, tmp_path):
    split, tokenizer = ShardedSplit.open(tiny_shards, "test"), load_tokenizer(tiny_shards / "tokenizer")
    path = tmp_path / "references.jsonl"

    def passages(*lines, **settings):
        path.write_text("".join(f"{line}\n" for line in lines))
        config = ContinuationsConfig(count=5, references=str(path), **settings)
        return open_passages(config, split, tokenizer, seed=0)

    good = '{"prompt": "To be", "reference": ["or not to be", "or so"]}'
    assert passages(good)[0].references == ["or not to be", "or so"]
    with pytest.raises(ConfigError) as refused:
        passages(good, "no json", '{"prompt": 3}', '{"prompt": "a", "reference": []}')
    assert [fault.split(": ")[2] for fault in refused.value.faults] == ["line 2", "line 3", "line 4"]
    with pytest.raises(ConfigError, match="is empty"):
        passages()
    with pytest.raises(ConfigError, match="no document of the test split has 9000"):
        open_passages(ContinuationsConfig(count=5, prompt_tokens=9000), split, tokenizer, seed=0)
