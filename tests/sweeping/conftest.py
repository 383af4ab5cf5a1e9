import json
import sys
from pathlib import Path

import pytest
import yaml

from ava_core.runtime.work import Entry
from ava_core.sweeping.checks import Base, check
from ava_core.sweeping.space import read_space
from ava_core.sweeping.sweep import SweepRequest

FAKE = (sys.executable, str(Path(__file__).with_name("fake_ava.py")))
RATES = [0.1, 0.01, 0.001]
SPACE = {
    "method": "grid",
    "metric": {"name": "validation_bits_per_byte"},
    "parameters": {"train.learning_rate": {"values": RATES}},
}


class Fakes:
    """A folder with params.yaml, in which sweeps run with a program that only pretends."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.journal = folder / "journal"
        (folder / "params.yaml").write_text("train: {steps: 100, warmup_steps: 10}\n")
        (folder / "shards").mkdir(exist_ok=True)
        self.tell()

    def tell(self, **told) -> None:
        """What the program is to do; see fake_ava.py."""
        self.monkeypatch.setenv("FAKE", json.dumps({"journal": str(self.journal), **told}))

    def request(self, trials=None, max_failures=3, name="s", base=(), **changes) -> SweepRequest:
        """A sweep over the changed space; shards are made by the program."""
        space = {name: value for name, value in {**SPACE, **changes}.items() if value is not None}
        path = self.folder / "sweep.yaml"
        path.write_text(yaml.safe_dump(space, sort_keys=False))
        configuration = Base(params=self.folder / "params.yaml", configs=(), overrides=tuple(base), space=path)
        work = self.folder / "work"
        return SweepRequest(
            name=name,
            base=configuration,
            checked=check(read_space(path), configuration, trials),
            storage=f"sqlite:///{self.folder / 'sweep.db'}",
            folder=self.folder / "out",
            work=work,
            max_failures=max_failures,
            program=FAKE,
            find_entry=lambda config, shards, output: Entry(work / "train" / output.parent.name),
        )

    def calls(self, step="train") -> list[dict]:
        """What the program was called with, in order."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [call for call in map(json.loads, lines) if call["step"] == step]


@pytest.fixture
def fakes(tmp_path, monkeypatch) -> Fakes:
    return Fakes(tmp_path, monkeypatch)
