"""Preprocess: the output holds what it promises, the same bytes every time, also after a kill."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from transformers import AutoTokenizer

from ava_core.config.data import CleaningConfig, DataConfig
from ava_core.config.tokenizer import TokenizerConfig
from ava_core.data.cleaning import Cleaner
from ava_core.data.preprocess import preprocess
from ava_core.data.shards import ShardedSplit
from ava_core.data.sources.source import Document
from ava_core.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from ava_core.errors import AvaError
from ava_core.progress import Progress
from ava_core.runtime import manifest
from ava_core.runtime.manifest import describe_files
from ava_core.steps.table import STEPS

ROOT = Path(__file__).parents[2]
SCENE = 2500
"""Characters of one document."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, corpus_text) -> Path:
    """A folder with text files, one of them twice, one nearly twice, one without letters."""
    folder = tmp_path_factory.mktemp("raw")
    scenes = [corpus_text[start : start + SCENE] for start in range(0, len(corpus_text) - SCENE, SCENE)]
    for number, scene in enumerate(scenes):
        (folder / f"scene-{number:02}.txt").write_text(scene)
    (folder / "z-again.txt").write_text(scenes[3])
    (folder / "z-nearly.txt").write_text(scenes[5][:-100] + "Exeunt")
    (folder / "z-numbers.txt").write_text("1 2 3 4 5 6 7 8 9 " * 10)
    return folder


def run(data: Path, tmp_path: Path, tokenizer: dict | None = None, **fields):
    config = DataConfig.model_validate({"sources": [{"path": "*.txt"}], **fields})
    output, state = tmp_path / "output", tmp_path / "state"
    output.mkdir()
    state.mkdir(exist_ok=True)
    result = preprocess(
        config,
        TokenizerConfig.model_validate({"vocab_size": 400, **(tokenizer or {})}),
        data=data,
        output=output,
        state=state,
        progress=Progress(quiet=True),
    )
    return result, output


def tidy(text: str) -> str:
    """What cleaning makes of a plain text: written down a second time, in other words."""
    lines = [line.rstrip() for line in text.split("\n")]
    kept = [line for line, before in zip(lines, ["", *lines], strict=False) if line or before]
    return "\n".join(kept).strip("\n") + "\n"


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    return run(corpus, tmp_path_factory.mktemp("finished"))


def test_promised_figures_are_there_and_agree(finished, corpus):
    result, output = finished
    assert set(STEPS["preprocess"].metrics) <= result.metrics.keys()
    assert set(STEPS["preprocess"].timings) - {"wall_seconds"} <= result.timings.keys()
    documents = len(list(corpus.glob("*.txt")))
    assert result.metrics["documents_in"] == documents
    assert result.metrics["documents_dropped"] == 1
    assert result.metrics["duplicates_removed"] == 2
    assert result.metrics["documents_kept"] == documents - 3
    splits = {name: ShardedSplit.open(output, name) for name in ("train", "validation", "test")}
    for name, split in splits.items():
        assert result.metrics[f"{name}_tokens"] == split.num_tokens
        assert result.metrics[f"{name}_bytes"] == split.num_bytes
    assert sum(split.num_documents for split in splits.values()) == documents - 3


def test_decoded_shards_are_the_cleaned_documents_each_in_one_split(finished, corpus):
    _, output = finished
    tokenizer = load_tokenizer(output / "tokenizer")
    found: list[str] = []
    for name in ("train", "validation", "test"):
        split = ShardedSplit.open(output, name)
        text = tokenizer.decode(split.tokens.tolist(), skip_special_tokens=False)
        documents = text.removesuffix("<|endoftext|>").split("<|endoftext|>")
        assert len(documents) == split.num_documents
        assert sum(len(document.encode()) for document in documents) == split.num_bytes
        found += documents
    assert sorted(found) == sorted(tidy(path.read_text()) for path in corpus.glob("scene-*.txt"))


def test_transformers_and_datasets_read_the_output(finished):
    _, output = finished
    assert AutoTokenizer.from_pretrained(output / "tokenizer").pad_token_id == 1
    rows = datasets.load_from_disk(str(output / "test"))
    assert rows.column_names == ["document_id", "name", "tokens"]


def test_datasets_opens_the_whole_folder_as_its_splits(finished):
    _, output = finished
    whole = datasets.load_from_disk(str(output))
    assert isinstance(whole, datasets.DatasetDict) and list(whole) == ["train", "validation", "test"]
    for name, rows in whole.items():
        split = ShardedSplit.open(output, name)
        assert [token for row in rows["tokens"] for token in row] == split.tokens.tolist()
        assert len(set(rows["document_id"])) == split.num_documents
    assert not set(whole["train"]["name"]) & {*whole["validation"]["name"], *whole["test"]["name"]}


def test_copied_folder_opens_where_it_lies_and_its_splits_are_saved_again(finished, tmp_path):
    """What `datasets` itself writes of the splits says the same."""
    _, output = finished
    copied = shutil.copytree(output, tmp_path / "elsewhere")
    whole = datasets.load_from_disk(str(copied))
    assert Path(whole["test"].cache_files[0]["filename"]).is_relative_to(copied)
    whole.save_to_disk(str(tmp_path / "again"))
    again, ours = (json.loads((folder / "dataset_dict.json").read_text()) for folder in (tmp_path / "again", output))
    assert again == ours


def test_tokenizer_knows_nothing_of_the_held_out_splits(finished, corpus, tmp_path):
    _, output = finished
    held_out = {
        name for split in ("validation", "test") for name in datasets.load_from_disk(str(output / split))["name"]
    }
    train = [path.read_text() for path in sorted(corpus.glob("scene-*.txt")) if path.name not in held_out]
    cleaner = Cleaner(CleaningConfig())
    texts = [cleaner.clean(Document("d", text)).text for text in train]
    save_tokenizer(train_tokenizer(texts, TokenizerConfig(vocab_size=400)), tmp_path / "tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "tokenizer" / name).read_bytes() == (output / "tokenizer" / name).read_bytes()


def test_report_and_card_count_what_was_done(finished):
    _, output = finished
    report = json.loads((output / "cleaning.json").read_text())
    dropped = next(item for item in report["filters"] if item["name"] == "min_letter_share")
    assert dropped["samples"][0]["document"] == "z-numbers.txt"
    removed = report["deduplication"]
    assert (removed["exact_duplicates"], removed["near_duplicates"]) == (1, 1)
    assert [(item["document"], item["repeats"]) for item in removed["samples"]] == [
        ("z-again.txt", "scene-03.txt"),
        ("z-nearly.txt", "scene-05.txt"),
    ]
    card = (output / "README.md").read_text()
    assert card.startswith("---\n")
    assert "Duplicates removed: 1 exact, 1 near" in card


def test_output_names_no_place_of_this_machine(finished, corpus, tmp_path):
    _, output = run(corpus, tmp_path, sources=[{"path": str(corpus / "*.txt")}])
    for path in output.rglob("*"):
        if path.is_file():
            assert str(corpus).encode() not in path.read_bytes()
    assert describe_files(output) == describe_files(finished[1])


SCRIPT = """
import os, signal, sys
from pathlib import Path
from ava_core.config.data import DataConfig
from ava_core.config.tokenizer import TokenizerConfig
from ava_core.data import preprocess as module
from ava_core.data import stages
from ava_core.data.cleaning import Cleaner
from ava_core.progress import Progress

data, output, state, where = sys.argv[1:]


def killed(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def killed_late(function, calls):
    def wrapper(*args, **kwargs):
        calls.append(1)
        return killed() if len(calls) == 2 else function(*args, **kwargs)
    return wrapper


if where == "write_split":
    stages.write_split = killed_late(stages.write_split, [])
elif where == "clean":
    calls = []
    Cleaner.clean = killed_late(Cleaner.clean, calls)
elif where != "nowhere":
    setattr(stages if hasattr(stages, where) else module, where, killed)
config = DataConfig.model_validate({"sources": [{"path": "*.txt"}]})
module.preprocess(config, TokenizerConfig(vocab_size=400), data=Path(data), output=Path(output), state=Path(state),
                  progress=Progress(quiet=True))
"""


def run_killed(corpus: Path, tmp_path: Path, where: str) -> int:
    output = tmp_path / f"killed-{where}"
    output.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(corpus), str(output), str(tmp_path / "state"), where]
    environment = os.environ | {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, cwd=ROOT).returncode


@pytest.mark.slow
def test_run_killed_in_every_stage_ends_with_the_bytes_of_an_undisturbed_one(corpus, finished, tmp_path):
    done: list[set[str]] = []
    for where in ("clean", "deduplicate", "train_tokenizer", "write_split", "write_splits_info"):
        assert run_killed(corpus, tmp_path, where) == -signal.SIGKILL
        done.append({path.name for path in (tmp_path / "state").glob("*") if path.suffix != ".partial"})
    assert done == [
        set(),
        {"cleaned"},
        {"cleaned", "deduplicated"},
        {"cleaned", "deduplicated", "tokenizer", "split-train"},
        {"cleaned", "deduplicated", "tokenizer", "split-train", "split-validation", "split-test"},
    ]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "state").rglob("*")}
    _, output = run(corpus, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "state").rglob("*")} == times
    assert describe_files(output) == describe_files(finished[1])


def test_cut_by_position_keeps_the_order_of_one_long_text(corpus_text, tmp_path):
    (tmp_path / "all.txt").write_text(corpus_text)
    _, output = run(tmp_path, tmp_path, split={"by": "position"})
    tokenizer = load_tokenizer(output / "tokenizer")
    texts = [
        tokenizer.decode(ShardedSplit.open(output, name).tokens[:-1].tolist())
        for name in ("train", "validation", "test")
    ]
    whole = "".join(texts)
    assert whole == tidy(corpus_text)
    assert len(texts[0].encode()) == int(len(whole.encode()) * 0.9)


def test_small_shards_are_many_files_with_the_same_stream(corpus, finished, tmp_path):
    _, output = run(corpus, tmp_path, shard_tokens=5000)
    assert len(list((output / "train").glob("*.arrow"))) > 3
    assert (ShardedSplit.open(output, "train").tokens == ShardedSplit.open(finished[1], "train").tokens).all()


def test_vocabulary_larger_than_the_text_gives_is_said_and_recorded(corpus, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        result, output = run(corpus, tmp_path, tokenizer={"vocab_size": 100_000})
    assert "tokenizer.vocab_size = 100000: the training split has too few pairs" in caplog.text
    size = json.loads((output / "splits.json").read_text())["vocab_size"]
    assert 400 < result.metrics["vocab_size"] == size == len(load_tokenizer(output / "tokenizer")) < 100_000


def test_two_documents_are_refused(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"{name}: Now is the winter of our discontent made glorious summer\n")
    with pytest.raises(AvaError, match="has 2 different documents after cleaning"):
        run(tmp_path, tmp_path)


def test_nothing_left_after_cleaning_is_refused_with_the_reasons(tmp_path):
    (tmp_path / "a.txt").write_text("short\n")
    (tmp_path / "b.txt").write_text("1234567890 " * 20)
    with pytest.raises(
        AvaError, match=r"left of 2 after cleaning \(min_characters dropped 1, min_letter_share dropped 1\)"
    ):
        run(tmp_path, tmp_path)


def test_source_without_any_document_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(AvaError, match="hold no document"):
        run(tmp_path, tmp_path, sources=[{"path": "a.jsonl", "format": "jsonl"}])


def ava(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ava_core.cli.main", "preprocess", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_command_makes_a_verified_output_and_takes_it_again(corpus, tmp_path):
    params = "data:\n  sources: [{path: '*.txt'}]\ntokenizer:\n  vocab_size: 400\n"
    flags = ["--params-yaml", params, "--data", str(corpus), "--output", "shards"]
    first = ava(*flags, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert ShardedSplit.open(tmp_path / "shards", "train").num_tokens > 1000
    assert {"splits.json", "dataset_dict.json"} <= manifest.verify(tmp_path / "shards").files.keys()
    again = ava(*flags, cwd=tmp_path)
    assert again.returncode == 0
    assert "up to date" in again.stderr


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--data", "."], "run `make data`"),
        (["--data", "nowhere"], "no such folder: run `make data`"),
        ([], "--data is missing: run `make data`"),
        (["--data", ".", "--set", "data.sources=[{path: '*.none'}]"], "no file with text matches"),
    ],
)
def test_command_refuses_a_missing_corpus_in_one_line(tmp_path, flags, line):
    done = ava("--params-yaml", "seed: 1", *flags, "--output", "shards", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("ava: ")
    assert len(done.stderr.splitlines()) == 1
    assert line in done.stderr
    assert not (tmp_path / "shards").exists()
