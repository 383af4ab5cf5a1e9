"""What CONTRIBUTING.md says is added in two files is added in two files, and works."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

import ava_core

PACKAGE = Path(ava_core.__file__).parent
ROUTER = '''"""For this test: the experts after the most probable one."""

from ava_core.models.routing.router import Router


class SecondBestRouter(Router):
    """Leaves out the most probable expert."""

    def select(self, scores, token_mask_T):
        return scores.logits_TE.topk(self.k + 1, dim=-1).indices[:, 1:], None
'''
OPTIMIZER = '''"""For this test: the gradient and nothing else."""

import torch


def build(groups, config):
    """Plain gradient descent over `groups`."""
    return torch.optim.SGD(groups, lr=config.learning_rate)
'''


SOURCE = '''"""For this test: each line of a file is a document."""

from ava_core.data.sources.formats import Reading
from ava_core.data.sources.path import FileSource


def open_source(config, separator, data):
    """The lines of one file below --data."""
    reading = Reading(format="text", text_field=config.text_field, separator="\\n")
    return FileSource(config.lines, data, (data / config.lines,), reading)
'''


@pytest.fixture
def edited(tmp_path):
    """A copy of the package with one of each; new files, and lines in files that are there."""
    package = tmp_path / "copy" / "ava_core"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    if (PACKAGE.parent / "configs").is_dir():
        (package.parent / "configs").symlink_to(PACKAGE.parent / "configs")

    def replace(name, before, after):
        path = package / name
        text = path.read_text()
        assert text.count(before) == 1
        path.write_text(text.replace(before, after))

    replace("config/routing.py", '"expert_choice"]', '"expert_choice", "second_best"]')
    (package / "models/routing/second_best.py").write_text(ROUTER)
    replace("config/optimizers.py", '_free"]', '_free", "descent"]')
    replace("config/optimizers.py", '    "lion": ', '    "descent": Traits(state_entries=_moments(0)),\n    "lion": ')
    (package / "training/optimizers/descent.py").write_text(OPTIMIZER)
    replace("config/train.py", '"inverse_sqrt"\n]', '"inverse_sqrt", "quarter"\n]')
    replace("training/schedules.py", '    "plateau": ', '    "quarter": lambda *_: 0.25,\n    "plateau": ')
    replace("config/data.py", '"hub")', '"hub", "lines")')
    replace("config/data.py", "    hub: Text | None", "    lines: Text | None = None\n    hub: Text | None")
    (package / "data/sources/lines.py").write_text(SOURCE)
    replace("config/data.py", '"arrow"]', '"arrow", "loud"]')
    loud = "lambda path, name, column: iter([Row(name, {column: path.read_text().upper()})])"
    replace("data/sources/formats.py", "FORMATS = {", f'FORMATS = {{\n    "loud": Format((".loud",), {loud}),')
    return package.parent


def run_ava(edited, *arguments):
    program = (
        "import sys\nfrom ava_core.cli import checkout, main\n"
        "checkout.refuse_copied_environment = lambda *_: None\n"  # for this is a copy
        "sys.argv[0] = 'ava'\nmain.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(edited)},
        cwd=edited.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_files_are_enough_for_a_source_or_a_format(edited, tmp_path, corpus_text):
    text = tmp_path / "text"
    text.mkdir()
    (text / "verse.txt").write_text("\n".join(f"{number}. {corpus_text[:60]!r}" for number in range(40)))
    (text / "a.loud").write_text("hark, " * 20)
    values = {
        "data": {
            "sources": [{"lines": "verse.txt"}, {"path": ".", "format": "loud"}],
            "deduplication": {"near": False},
            "cleaning": {"min_letter_share": 0.0, "max_line_repetition": 1.0},
        },
        "tokenizer": {"vocab_size": 280},
    }
    output = tmp_path / "shards"
    flags = ["--data", text, "--output", output, "--work", tmp_path / "work", "--quiet"]
    run_ava(edited, "preprocess", "--params-yaml", json.dumps(values), *flags)
    report = json.loads((output / "cleaning.json").read_text())
    assert report["documents_out"] == 41
    splits = datasets.load_from_disk(str(output)).values()
    assert {"verse.txt#40", "a.loud"} <= {name for split in splits for name in split["name"]}


@pytest.mark.slow
def test_two_files_are_enough_for_a_router_an_optimizer_or_a_schedule(edited, tmp_path, tiny_shards, make_params):
    train = {"optimizer": "descent", "schedule": "quarter", "learning_rate": 0.04, "steps": 2, "warmup_steps": 0}
    params = make_params(model={"router": "second_best"}, train=train)
    output = tmp_path / "model"
    flags = ["--params", params, "--shards", tiny_shards, "--output", output, "--work", tmp_path / "work", "--quiet"]
    run_ava(edited, "train", *flags)
    assert json.loads((output / "config.json").read_text())["router"] == "second_best"
    rows = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in rows] == [0.01, 0.01]
    assert rows[1]["train_loss"] != rows[0]["train_loss"]
