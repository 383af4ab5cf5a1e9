"""`ava compare` on evaluations: what it prints and writes, when it fails, and what it refuses."""

import json
import re
import shutil

import pytest

from ava_core.evaluation.losses import NAME
from tests.evaluation.comparison.evaluations import figures_of, losses_text, sealed, write_comparable


@pytest.fixture
def folders(tmp_path):
    """A base, one that is worse, one that is better, and one that is the base again."""
    write_comparable(tmp_path / "base", schemes=["int8"])
    write_comparable(tmp_path / "worse", 0.01, schemes=["int8"], rate=0.02)
    write_comparable(tmp_path / "better", -0.01)
    write_comparable(tmp_path / "again", schemes=["int8"])
    return tmp_path


def figure(comparison, name, model="float"):
    return next(row for row in comparison["figures"] if (row["figure"], row["model"]) == (name, model))


def test_figures_stand_side_by_side_with_intervals_and_verdicts(ava, folders):
    result = ava("compare", "base", "worse", "better")
    assert result.code == 0, result.err
    text = [" ".join(line.split()) for line in result.out.splitlines()]
    assert text[:3] == ["A base", "B worse", "C better"]
    assert text[4].endswith("95% intervals from 10,000 resamples of 60 documents")
    row = next(line for line in text if line.startswith("test_bits_per_byte"))
    assert "worse" in row
    assert "better" in row
    values = [figures_of(losses_text(effect))["float"]["test_bits_per_byte"] for effect in (0.0, 0.01, -0.01)]
    assert row.startswith("test_bits_per_byte " + " ".join(f"{value:.4f}" for value in values))
    assert "train.peak_learning_rate 0.01 0.02 0.01" in text
    assert not any(line.startswith("train.steps") for line in text)  # it is the same


def test_json_has_what_the_tables_show_and_what_models_have_in_common(ava, folders):
    found = json.loads(ava("compare", "base", "worse", "--json").out)
    row = figure(found, "test_bits_per_byte", "int8")
    assert row["differences"][0]["low"] < row["differences"][0]["value"] < row["differences"][0]["high"]
    assert row["values"][1] - row["values"][0] == pytest.approx(row["differences"][0]["value"])
    assert [item["prompt"] for item in found["samples"]] == ["To be"]
    assert found["samples"][0]["continuations"] == [" <b>or</b> 0", " <b>or</b> 0.01"]
    assert found["routing"][0]["load_distance"][0] == [pytest.approx(0.01 / 2.0)]
    costs = [
        abs(item["test_bits_per_byte"][1] - item["test_bits_per_byte"][0]) * item["bytes"]
        for item in found["documents"]
    ]
    assert costs == sorted(costs, reverse=True)
    assert len(costs) == 10


def test_equal_models_differ_by_exactly_nothing_in_every_figure(ava, folders):
    found = json.loads(ava("compare", "base", "again", "--json").out)
    assert len(found["figures"]) == 10
    for row in found["figures"]:
        assert row["differences"] == [{"value": 0.0, "low": 0.0, "high": 0.0, "verdict": "equal"}]


@pytest.mark.parametrize(("other", "code"), [("worse", 1), ("better", 0), ("again", 0)])
def test_fail_if_worse_fails_on_nothing_but_worse(ava, folders, other, code):
    result = ava("compare", "base", other, "--fail-if-worse")
    assert result.code == code
    assert ("worse: is worse than base: float test_bits_per_byte +0.01" in result.err) == bool(code)
    assert ava("compare", "base", other).code == 0


def test_page_needs_no_other_file_escapes_texts_and_has_the_same_bytes_again(ava, folders):
    first = ava("compare", "base", "worse", "--output", "out")
    assert first.code == 0, first.err
    pages = {path.name: path.read_bytes() for path in (folders / "out").iterdir()}
    assert sorted(pages) == ["comparison.html", "comparison.json"]
    page = pages["comparison.html"].decode()
    assert "&lt;b&gt;or&lt;/b&gt;" in page
    assert "<b>or</b>" not in page
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    assert "url(http" not in page
    assert "<script" not in page
    assert ava("compare", "base", "worse", "--output", "out").code == 0
    assert {path.name: path.read_bytes() for path in (folders / "out").iterdir()} == pages


def test_tokens_of_another_tokenizer_leave_what_is_per_byte(ava, folders):
    path = folders / "worse" / NAME
    path.write_text(path.read_text().replace('"tokens": [', '"tokens": [1'))
    sealed(folders / "worse")
    found = json.loads(ava("compare", "base", "worse", "--json").out)
    assert {row["figure"] for row in found["figures"]} == {"test_bits_per_byte"}
    assert not found["same_tokens"]


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["base"], 2, "base: one alone can't be compared: give two or more"),
        (["base", "worse", "./base"], 2, "./base: is given twice, also as base"),
        (["base", "worse", "--significance", "0"], 2, "--significance 0: must be > 0 and < 1"),
        (["base", "worse", "--significance", "1"], 2, "--significance 1: must be > 0 and < 1"),
        (["base", "worse", "--significance", "nan"], 2, "--significance nan: must be > 0 and < 1"),
        (["base", "gone"], 1, "gone: no such folder"),
        (["base", "worse", "--shards", "base"], 2, "--shards base: none of those given is a model"),
        (["base", "worse", "--output", "base"], 2, "--output base: holds something else than a comparison"),
        (["base", "models:/x"], 2, "models:/x: is no registered model"),
    ],
)
def test_bad_input_ends_in_one_line(ava, folders, arguments, code, line):
    result = ava("compare", *arguments)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith(f"ava: {line}")
    assert result.err.count("\n") == 1


def test_evaluation_of_another_text_is_refused_by_name(ava, folders):
    write_comparable(folders / "other", text="other")
    result = ava("compare", "base", "other")
    assert result.code == 1
    assert result.err.startswith("ava: other: was evaluated on another text than base: of its 60 documents 0 are")


def test_damaged_folder_is_refused_by_name(ava, folders):
    with (folders / "worse" / NAME).open("a") as file:
        file.write(" ")
    result = ava("compare", "base", "worse")
    assert result.code == 1
    assert f"worse/{NAME}: its bytes are not those in the manifest" in result.err


def test_evaluation_of_an_older_ava_says_what_to_do(ava, folders):
    (folders / "worse" / NAME).unlink()
    sealed(folders / "worse")
    result = ava("compare", "base", "worse")
    assert (result.code, "run `ava evaluate` again" in result.err) == (1, True)


def test_model_without_shards_says_what_to_give(ava, folders, tiny_model):
    shutil.copytree(tiny_model, folders / "model")
    result = ava("compare", "base", "model")
    assert (result.code, "model: is a model: give --shards" in result.err) == (2, True)


def test_models_are_evaluated_on_the_shards_first_and_only_once(ava, folders, tiny_model, tiny_shards):
    params = folders / "params.yaml"
    params.write_text("threads: 1\nevaluate: {prompts: [To be], generation: {max_new_tokens: 4, num_beams: 2}}\n")
    for name in ("one", "two"):
        shutil.copytree(tiny_model, folders / name)
    arguments = ("compare", "one", "two", "--shards", str(tiny_shards), "--params", "params.yaml", "--json", "--quiet")
    result = ava(*arguments)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["agreement"] == [{"expert_agreement": 1.0, "expert_slot_agreement": 1.0, "top1_agreement": 1.0}]
    assert found["figures"][0]["differences"][0]["value"] == 0.0
    assert found["figures"][0]["differences"][0]["verdict"] == "too little text"  # one document of one part
    assert len(list((folders / ".ava/work/evaluate").iterdir())) == 1
