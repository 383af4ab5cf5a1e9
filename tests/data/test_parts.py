"""A corpus cleaned in parts gives the same shards, byte for byte, as one that was cleaned in one go."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ava_core.config.data import DataConfig
from ava_core.config.tokenizer import TokenizerConfig
from ava_core.data.preprocess import clean_part, preprocess
from ava_core.data.sources import open_sources, part_of, read_documents
from ava_core.errors import AvaError
from ava_core.progress import Progress
from ava_core.runtime.manifest import describe_files

ROOT = Path(__file__).parents[2]
QUIET = Progress(quiet=True)
CONFIG = DataConfig.model_validate({"sources": [{"path": "*.txt"}, {"path": "more", "format": "jsonl"}]})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, corpus_text) -> Path:
    """Files of different sizes in two sources; every filter has something to do, in more documents than it samples."""
    folder = tmp_path_factory.mktemp("raw")
    for number in range(9):
        scene = corpus_text[number * 4000 : number * 4000 + 1500 + 300 * number]
        dirt = "trailing  \r\n\x07\n\n\n\n" if number % 2 else ""
        (folder / f"scene-{number}.txt").write_bytes((dirt + scene).encode())
        (folder / f"numbers-{number}.txt").write_text("1 2 3 4 5 6 7 8 9 " * 10)
    (folder / "again.txt").write_bytes((folder / "scene-4.txt").read_bytes())
    (folder / "more").mkdir()
    rows = [{"text": corpus_text[start : start + 900]} for start in range(40_000, 49_000, 900)]
    (folder / "more" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def whole(corpus: Path, tmp_path: Path, name: str = "whole", state: str = "state-of-whole"):
    output, state = tmp_path / name, tmp_path / state
    output.mkdir()
    state.mkdir(exist_ok=True)
    config = TokenizerConfig(vocab_size=400)
    result = preprocess(CONFIG, config, data=corpus, output=output, state=state, progress=QUIET)
    return result, output


def part(corpus: Path, state: Path, index: int, count: int) -> dict:
    return clean_part(CONFIG, data=corpus, state=state, index=index, count=count, progress=QUIET)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_parts_hold_all_documents_in_order_and_share_the_bytes(corpus, count):
    sources = open_sources(CONFIG, corpus)
    parts = [part_of(sources, index, count) for index in range(1, count + 1)]
    found = [document for sources_of_part in parts for document in read_documents(sources_of_part)]
    assert found == list(read_documents(sources))
    sizes = [sum(source.size for source in sources_of_part) for sources_of_part in parts]
    largest_file = max(source.size for sources_of_part in parts for source in sources_of_part)
    assert max(sizes) <= sum(sizes) / count + largest_file


@pytest.mark.parametrize("count", [1, 3, 50])
def test_shards_report_and_card_are_those_of_one_process(corpus, tmp_path, count, caplog):
    expected, output = whole(corpus, tmp_path)
    state = tmp_path / "state"
    for index in reversed(range(1, count + 1)):
        part(corpus, state, index, count)
    with caplog.at_level("INFO"):
        result, joined = whole(corpus, tmp_path, "joined", "state")
    assert f"taken up from {count} parts" in caplog.text
    assert result.metrics == expected.metrics
    assert describe_files(joined) == describe_files(output)
    report = json.loads((joined / "cleaning.json").read_text())
    letters = next(count for count in report["filters"] if count["name"] == "min_letter_share")
    assert len(letters["samples"]) == 3 and sum(letters["reasons"].values()) == 9


def test_a_missing_part_is_no_fault_and_the_corpus_is_cleaned_in_one_go(corpus, tmp_path, caplog):
    _, output = whole(corpus, tmp_path)
    for index in (1, 3):
        part(corpus, tmp_path / "state", index, 3)
    with caplog.at_level("INFO"):
        _, other = whole(corpus, tmp_path, "other", "state")
    assert "taken up" not in caplog.text
    assert describe_files(other) == describe_files(output)


def test_seconds_of_the_parts_count_as_work(corpus, tmp_path):
    state = tmp_path / "state"
    for index in (1, 2):
        part(corpus, state, index, 2)
        (state / f"cleaned-{index}-of-2" / "seconds.json").write_text("100.0")
    result, _ = whole(corpus, tmp_path, state="state")
    assert 200 < result.timings["clean_seconds"] < 300


def test_a_corpus_of_which_nothing_is_left_is_refused_although_its_parts_were_not(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("short")
    config = DataConfig.model_validate({"sources": [{"path": "*.txt"}]})
    state = tmp_path / "state"
    for index in (1, 2):
        clean_part(config, data=tmp_path, state=state, index=index, count=2, progress=QUIET)
    with pytest.raises(AvaError, match="no document is left of 2 after cleaning"):
        preprocess(config, TokenizerConfig(), data=tmp_path, output=tmp_path, state=state, progress=QUIET)


class Command:
    """`ava preprocess` on the corpus, as a user and Kubeflow call it."""

    def __init__(self, corpus: Path, folder: Path) -> None:
        self.corpus, self.folder = corpus, folder
        self.params = "data:\n  sources: [{path: '*.txt'}]\ntokenizer: {vocab_size: 400}\nthreads: 1\n"

    def start(self, output: str, *flags: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "ava_core.cli.main", "preprocess", "--params-yaml", self.params]
        command += ["--data", str(self.corpus), "--work", "work", "--output", output, *flags]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=self.folder, env=environment, stderr=subprocess.PIPE, text=True)

    def run(self, output: str, *flags: str) -> tuple[int, str]:
        process = self.start(output, *flags)
        error = process.communicate()[1]
        return process.returncode, error


@pytest.fixture
def command(corpus, tmp_path) -> Command:
    return Command(corpus, tmp_path)


@pytest.mark.slow
def test_parts_of_several_processes_meet_in_the_work_folder(command, tmp_path):
    processes = [command.start(f"part-{index}", "--part", f"{index}/3") for index in (1, 2, 3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    code, error = command.run("shards")
    assert code == 0 and "taken up from 3 parts" in error
    code, error = command.run("apart", "--work", "other")
    assert code == 0 and "taken up" not in error
    assert describe_files(tmp_path / "shards") == describe_files(tmp_path / "apart")


@pytest.mark.slow
def test_part_tells_kubeflow_what_it_did_and_a_second_time_that_nothing_was_left_to_do(command, tmp_path):
    message = json.dumps({"inputs": {}, "outputs": {"outputFile": str(tmp_path / "kfp" / "output.json")}})
    flags = ("--part", "1/1", "--executor-output", "{{$.outputs.output_file}}", "--executor-input", message)
    for reused in (False, True):
        code, error = command.run("part", *flags)
        assert code == 0, error
        (artifact,) = json.loads((tmp_path / "kfp" / "output.json").read_text())["artifacts"]["report"]["artifacts"]
        assert artifact["uri"] == str(tmp_path / "part")
        assert artifact["metadata"] == {"part": "part-1-of-1", "reused": reused}
        report = json.loads((tmp_path / "part" / "report.json").read_text())["report"]
        assert report.get("documents_in") == (None if reused else 19)
        assert command.run("shards")[0] == 0
    assert not (tmp_path / "{{$.outputs.output_file}}").exists()


@pytest.mark.slow
def test_preprocess_waits_for_a_part_that_is_at_work(command, tmp_path):
    from ava_core.runtime.work import WorkStore

    assert command.run("part", "--part", "1/2")[0] == 0
    (folder,) = (tmp_path / "work" / "preprocess").iterdir()
    with WorkStore(tmp_path / "work").entry("preprocess", folder.name).locked_part("part-2-of-2"):
        process = command.start("shards")
        other = command.start("part", "--part", "1/2")
        assert other.wait() == 0  # parts don't wait for each other
        time.sleep(0.5)
        assert process.poll() is None
    assert process.wait() == 0


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/2/3"])
def test_a_part_that_there_is_not_is_refused(command, part):
    code, error = command.run("part", f"--part={part}")
    assert (code, error) == (2, f"ava: --part {part}: must be I/N with 1 <= I <= N, such as 2/4\n")
