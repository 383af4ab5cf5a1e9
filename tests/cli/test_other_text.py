"""From text to figures with the command line: one tokenizer for two texts, one model on both kinds of shards."""

import json
import shutil

import pytest


@pytest.fixture
def corpora(tmp_path, corpus_text, make_params):
    """Two folders of texts that share none; the parameters read whichever is given as --data."""
    half = len(corpus_text) // 2
    for name, text in (("a", corpus_text[:half]), ("b", corpus_text[half:])):
        (tmp_path / name).mkdir()
        for number, start in enumerate(range(0, half, 2000)):
            (tmp_path / name / f"{name}-{number:02}.txt").write_text(text[start : start + 2000])
    make_params(data={"sources": [{"path": "*.txt"}]}, train={"steps": 20, "precision": "fp32"})
    return tmp_path


def read(folder, name):
    return json.loads((folder / name).read_text())


@pytest.mark.slow
def test_model_scores_another_text_alike_in_shards_of_its_own_and_of_another_tokenizer(ava, corpora):
    def step(name, output, *arguments):
        result = ava(name, "--params", "params.yaml", "--output", output, "--quiet", *arguments)
        assert result.code == 0, result.err
        return corpora / output

    first = step("preprocess", "first", "--data", "a")
    own = step("preprocess", "own", "--data", "b", "--set", f"tokenizer.from={first}")
    foreign = step("preprocess", "foreign", "--data", "b", "--set", "tokenizer.vocab_size=330")
    manifests = [read(folder, "manifest.json") for folder in (first, own, foreign)]
    digests = [manifest["files"]["tokenizer/tokenizer.json"]["sha256"] for manifest in manifests]
    assert digests[0] == digests[1] != digests[2]
    assert ["tokenizer" in manifest["inputs"] for manifest in manifests] == [False, True, False]
    assert digests[0] in (own / "README.md").read_text()

    model = step("train", "model", "--shards", "first")
    assert read(model, "manifest.json")["files"]["tokenizer.json"]["sha256"] == digests[0]
    figures, protocols = [], []
    for name in ("first", "own", "foreign"):
        evaluation = step("evaluate", f"on-{name}", "--model", "model", "--shards", name)
        figures.append(read(evaluation, "metrics.json"))
        protocols.append(read(evaluation, "evaluation.json")["protocol"])
        other = name != "first"
        assert ("not of the shards that the model was trained on" in (evaluation / "summary.md").read_text()) == other
        assert ("not of the shards that the model was trained on" in (evaluation / "report.html").read_text()) == other
    assert figures[1]["test_bits_per_byte"] == pytest.approx(figures[2]["test_bits_per_byte"], rel=1e-12)
    assert figures[1] == figures[2] and figures[0]["test_loss"] != figures[1]["test_loss"]
    assert "other_text" not in protocols[0]
    assert [protocol["other_text"].pop("reencoded") for protocol in protocols[1:]] == [False, True]
    assert protocols[1]["other_text"]["documents"][0].startswith("b-")
    assert {key: value for key, value in protocols[1].items() if key != "other_text"} == {
        key: value for key, value in protocols[2].items() if key != "other_text"
    }


def test_tokenizer_counts_by_its_content_not_by_its_place(ava, corpora):
    arguments = ("preprocess", "--params", "params.yaml", "--data", "b", "--quiet")
    assert ava(*arguments, "--output", "first").code == 0
    tokenizer = corpora / "first" / "tokenizer"
    for place in ("one", "two"):
        (corpora / "b" / place).mkdir()
        (corpora / "b" / place / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    results = [ava(*arguments, "--output", place, "--set", f"tokenizer.from={place}") for place in ("one", "two")]
    assert [result.code for result in results] == [0, 0], results
    assert "unchanged: the finished output was taken" in results[1].err
    keys = [read(corpora / place, "manifest.json")["key"] for place in ("first", "one", "two")]
    assert keys[0] != keys[1] == keys[2]
    changed = json.loads((tokenizer / "tokenizer.json").read_text())
    changed["model"]["merges"].pop()
    (corpora / "b" / "two" / "tokenizer.json").write_text(json.dumps(changed))
    result = ava(*arguments, "--output", "two", "--set", "tokenizer.from=two")
    assert result.code == 2 and "was made from something else" in result.err


def test_flag_names_a_tokenizer_from_the_current_folder_and_means_the_setting(ava, corpora):
    arguments = ("preprocess", "--params", "params.yaml", "--data", "b", "--quiet")
    assert ava(*arguments, "--output", "first").code == 0
    result = ava(*arguments, "--output", "flag", "--tokenizer", "first")
    assert result.code == 0, result.err
    setting = ava(*arguments, "--output", "setting", "--set", f"tokenizer.from={corpora / 'first'}")
    assert "unchanged: the finished output was taken" in setting.err
    over = ava(*arguments, "--output", "first", "--tokenizer", "first", "--force")
    assert over.code == 2 and f"is what tokenizer.from = {corpora / 'first'} names, or lies in it" in over.err


def test_what_dvc_depends_on_knows_the_tokenizer_by_its_content(ava, corpora):
    shards = ava("preprocess", "--params", "params.yaml", "--data", "a", "--quiet", "--output", "first")
    assert shards.code == 0, shards.err
    place = corpora / "b" / "place"
    shutil.copytree(corpora / "first" / "tokenizer", place)
    (corpora / "named.yaml").write_text("tokenizer: {from: place}\n")

    def known():
        result = ava("keys", "--params", "named.yaml", "--data", "b", "--output", "keys")
        assert result.code == 0, result.err
        return read(corpora / "keys", "preprocess.json")

    before = known()
    assert "from" not in before["values"]["tokenizer"]
    place.rename(corpora / "b" / "other")
    (corpora / "named.yaml").write_text("tokenizer: {from: other}\n")
    assert known() == before
    changed = read(corpora / "b" / "other", "tokenizer.json")
    changed["model"]["merges"].pop()
    (corpora / "b" / "other" / "tokenizer.json").write_text(json.dumps(changed))
    assert {key for key, value in known().items() if value != before[key]} == {"inputs"}


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        ("gone", 1, "gone: no such file or folder"),
        ("b-00.txt", 1, "can't be read as a tokenizer"),
        ("models:/plays", 2, "models:/plays: is no registered model"),
        ("''", 2, "tokenizer.from"),
    ],
)
def test_tokenizer_that_there_is_not_is_refused_before_the_work(ava, corpora, value, code, message):
    result = ava(
        "preprocess", "--params", "params.yaml", "--data", "b", "--output", "out", "--set", f"tokenizer.from={value}"
    )
    assert result.code == code and message in result.err, result.err
    assert "cleaned" not in {path.name for path in (corpora / ".ava").rglob("*")}


def test_changed_shards_are_no_source_of_a_tokenizer(ava, corpora):
    arguments = ("preprocess", "--params", "params.yaml", "--data", "b", "--quiet")
    assert ava(*arguments, "--output", "first").code == 0
    path = corpora / "first" / "tokenizer" / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b"\n")
    result = ava(*arguments, "--output", "second", "--set", f"tokenizer.from={corpora / 'first'}")
    assert result.code == 1 and "tokenizer.json: its bytes are not those in the manifest" in result.err
