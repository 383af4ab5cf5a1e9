"""The report's section on a model that was trained after its pretraining."""

import json
import shutil
from dataclasses import replace

import pytest

from ava_core.errors import IntegrityError
from ava_core.evaluation.charts import training_curves
from ava_core.evaluation.report.aligned import (
    SHOWN,
    Aligned,
    aligned_answers,
    aligned_cards,
    aligned_rows,
    has_loss_of_text,
    read_aligned,
)
from ava_core.runtime import manifest

FIGURES = {
    "start_sample_reward": 0.5, "sample_reward": 0.75, "author_reward": 0.9, "start_ended_answers": 1.0,
    "ended_answers": 0.9, "start_answer_tokens": 40.0, "answer_tokens": 30.0, "start_repetition_4gram": 0.0,
    "repetition_4gram": 0.0, "sample_wins": 0.8125, "kl_to_start": 12.345, "validation_loss": 1.0,
}  # fmt: skip


def line(number: int, *, reference: str | None = "The <b>data's</b>.") -> dict:
    messages = [{"role": "system", "content": "ROMEO"}, {"role": "user", "content": f"Who {number}?"}]
    texts = {"start": {"text": "Before.", "reward": 0.25}, "end": {"text": "After.", "reward": 1.0}}
    return {"messages": messages, "reference": reference, **texts}


def write(folder, figures=FIGURES, lines=None):
    (folder / "metrics.json").write_text(json.dumps(figures))
    text = "".join(f"{json.dumps(each)}\n" for each in lines or [line(number) for number in range(9)])
    (folder / "answers.jsonl").write_text(text)
    return folder


def test_rows_hold_the_end_against_the_start_and_say_what_is_better(tmp_path):
    rows = {row["name"]: row for row in aligned_rows(read_aligned(write(tmp_path)))}
    reward = rows["sample_reward"]
    assert (reward["start"], reward["end"], reward["data"]) == ("0.500", "0.750", "0.900")
    assert (reward["change"], reward["tone"]) == ("+0.250", "good")
    assert (rows["ended_answers"]["change"], rows["ended_answers"]["tone"]) == ("-10.0 points", "bad")
    assert (rows["answer_tokens"]["change"], rows["answer_tokens"]["tone"]) == ("-10.0", "")
    assert (rows["repetition_4gram"]["change"], rows["repetition_4gram"]["tone"]) == ("=", "")


def test_parts_of_the_reward_are_rows_where_there_are_several():
    one = {"sample_reward_metre": 0.5, "start_sample_reward_metre": 0.25}
    two = {**one, "sample_reward_lines": 1.0, "start_sample_reward_lines": 1.0}
    names = [[row["name"] for row in aligned_rows(Aligned({**FIGURES, **parts}, []))][:3] for parts in (one, two)]
    assert names[0] == ["sample_reward", "ended_answers", "answer_tokens"]
    assert names[1] == ["sample_reward", "sample_reward_lines", "sample_reward_metre"]


def test_cards_say_wins_and_distance():
    assert [card["value"] for card in aligned_cards(Aligned(FIGURES, []))] == ["81%", "12.35"]
    assert aligned_cards(Aligned({}, [])) == []


def test_answers_are_those_of_the_first_prompts_side_by_side(tmp_path):
    found = aligned_answers(read_aligned(write(tmp_path)))
    assert [each["asked"] for each in found] == [f"Who {number}?" for number in range(SHOWN)]
    assert found[0]["system"] == "ROMEO"
    assert [(text["by"], text["text"], text["worth"]) for text in found[0]["texts"]] == [
        ("start", "Before.", "worth 0.250"),
        ("now", "After.", "worth 1.000"),
        ("data", "The <b>data's</b>.", ""),
    ]
    alone = aligned_answers(Aligned(FIGURES, [line(0, reference=None)]))
    assert [text["by"] for text in alone[0]["texts"]] == ["start", "now"]


def test_model_without_a_comparison_has_no_section(tmp_path):
    assert read_aligned(tmp_path) is None
    write(tmp_path)
    (tmp_path / "answers.jsonl").write_text("")
    assert read_aligned(tmp_path) is None


@pytest.mark.parametrize("text", ["{broken\n", "[]\n", '{"messages": []}\n'])
def test_damaged_answers_are_refused(tmp_path, text):
    write(tmp_path)
    (tmp_path / "answers.jsonl").write_text(text)
    with pytest.raises(IntegrityError, match=r"answers.jsonl or metrics.json can't be read .*train again"):
        read_aligned(tmp_path)


def test_curves_are_of_what_was_recorded():
    history = [{"step": step, "reward": step / 9, "kl_to_start": 0.1 * step, "train_loss": 0.0} for step in range(9)]
    both = training_curves(history)
    assert both == training_curves(history) and both.startswith("<svg")
    assert both != training_curves([{"step": row["step"], "reward": row["reward"]} for row in history])
    assert training_curves([{"step": 1, "train_loss": 0.0}, {"step": 2, "train_loss": 0.0}]) == ""
    assert training_curves(history[:1]) == ""


def test_loss_that_is_none_of_text_is_told_by_its_figures():
    assert has_loss_of_text([{"step": 1, "train_loss": 3.0}, {"step": 2, "validation_loss": 3.0}])
    assert not has_loss_of_text([{"step": 1}, {"step": 2, "validation_loss": -0.5, "validation_reward": 0.5}])


@pytest.fixture
def aligned_model(tiny_model, tmp_path):
    """The tiny model with what a training on rewards leaves beside it."""
    folder = tmp_path / "aligned"
    shutil.copytree(tiny_model, folder)
    write(folder, FIGURES)
    training = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps({**training, "corpus": {"train_conversations": 1234}}))
    rows = [{"step": step, "train_loss": 0.0, "reward": step / 4, "validation_reward": 0.5} for step in range(4)]
    (folder / "history.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    manifest.write(folder, replace(manifest.read(folder), files=manifest.describe_files(folder)))
    return folder


def test_page_of_an_aligned_model_shows_both_and_escapes_what_was_said(aligned_model, run_evaluation, tmp_path):
    page = (run_evaluation(tmp_path / "evaluated", model=aligned_model).output / "report.html").read_text()
    for text in ("Answers, before and after", "81%", "1,234 conversations"):
        assert text in page
    assert "Loss while training" not in page
    assert "The &lt;b&gt;data&#39;s&lt;/b&gt;." in page and "<b>data's</b>" not in page
