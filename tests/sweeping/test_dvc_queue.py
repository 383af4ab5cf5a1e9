import json
import sys
from pathlib import Path

import pytest

from ava_core.errors import AvaError, ConfigError
from ava_core.sweeping.dvc import queue
from tests.sweeping.conftest import RATES

FAKE_DVC = """#!{python}
import json, sys
from pathlib import Path
words = sys.argv[1:]
if words[:2] == ["exp", "list"]: print("s-0000")
elif words[:2] == ["queue", "status"]: print("Task  Name  Created  Status\\n1234  s-0002  Jan 01  Queued")
elif "s-broken-0000" in words: sys.exit("ERROR: working tree is dirty")
else: Path(r"{journal}").open("a").write(json.dumps(words) + "\\n")
"""


@pytest.fixture
def dvc(tmp_path):
    program = tmp_path / "dvc"
    program.write_text(FAKE_DVC.format(python=sys.executable, journal=tmp_path / "queued"))
    program.chmod(0o755)
    return str(program)


def test_points_that_are_not_there_yet_are_queued(fakes, dvc, tmp_path):
    (tmp_path / "params.yaml").write_text("train: {learning_rate: null, steps: 100, warmup_steps: 10}\n")
    request = fakes.request()
    assert queue("s", request.base, request.checked, dvc) == ["s-0001"]
    (words,) = map(json.loads, (tmp_path / "queued").read_text().splitlines())
    assert words == ["exp", "run", "--queue", "--name", "s-0001", "--set-param", f"train.learning_rate={RATES[1]}"]
    with pytest.raises(AvaError, match="ERROR: working tree is dirty"):
        queue("s-broken", request.base, request.checked, dvc)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "train.learning_rate: isn't listed there"),
        ({"method": "tpe"}, "method = tpe: goes by what earlier trials gave"),
        ({"pruner": {"median": {}}}, "pruner: DVC ends no experiment early"),
        ({"base": ["train.weight_decay=1"]}, "DVC reads params.yaml alone"),
    ],
)
def test_what_a_queue_cannot_do_is_refused_before_anything_is_queued(fakes, dvc, tmp_path, changes, says):
    request = fakes.request(**changes)
    with pytest.raises(ConfigError) as error:
        queue("s", request.base, request.checked, dvc)
    assert says in str(error.value)
    assert not Path(tmp_path / "queued").exists()
