"""A router, an optimiser and a schedule are each added in two files, as CONTRIBUTING.md says, and train."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

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


@pytest.fixture
def edited(tmp_path):
    """A copy of the package with the three of them; new files, and lines in files that are there."""
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
    replace("config/optimizers.py", '"sophia"]', '"sophia", "descent"]')
    replace("config/optimizers.py", '    "lion": ', '    "descent": Traits(state_entries=_moments(0)),\n    "lion": ')
    (package / "training/optimizers/descent.py").write_text(OPTIMIZER)
    replace("config/train.py", '"plateau"]', '"plateau", "quarter"]')
    replace("training/schedules.py", '    "plateau": ', '    "quarter": lambda *_: 0.25,\n    "plateau": ')
    return package.parent


@pytest.mark.slow
def test_two_files_are_enough_for_a_router_an_optimizer_or_a_schedule(edited, tmp_path, tiny_shards, make_params):
    train = {"optimizer": "descent", "schedule": "quarter", "learning_rate": 0.04, "steps": 2, "warmup_steps": 0}
    params = make_params(model={"router": "second_best"}, train=train)
    program = (
        "import sys\nfrom ava_core.cli import checkout, main\n"
        "checkout.refuse_copied_environment = lambda *_: None\n"  # for this is a copy
        "sys.argv[0] = 'ava'\nmain.main()\n"
    )
    output = tmp_path / "model"
    flags = ["--params", params, "--shards", tiny_shards, "--output", output, "--work", tmp_path / "work", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", program, "train", *map(str, flags)],
        env={**os.environ, "PYTHONPATH": str(edited)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((output / "config.json").read_text())["router"] == "second_best"
    rows = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in rows] == [0.01, 0.01]
    assert rows[1]["train_loss"] != rows[0]["train_loss"]
