import json
import sys
from pathlib import Path

import pytest

from ava_core.errors import AvaError, ConfigError
from ava_core.sweeping.dvc import queue
from ava_core.sweeping.dvc_results import gather_experiments
from tests.sweeping.conftest import RATES

FAKE_DVC = """#!{python}
import json, sys
from pathlib import Path
words = sys.argv[1:]
shown = Path(r"{journal}").with_name("shown.json")
if words[:2] == ["exp", "list"]: print("s-0000")
elif words[:2] == ["exp", "show"]: print(shown.read_text())
elif words[:2] == ["queue", "status"]:
    print("Task  Name  Created  Status\\n1234  s-0002  Jan 01  Queued\\n1235  f-0001  Jan 01  Failed")
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


def test_experiment_that_has_failed_is_not_queued_again_before_it_is_forgotten(fakes, dvc, tmp_path, caplog):
    (tmp_path / "params.yaml").write_text("train: {learning_rate: null, steps: 100, warmup_steps: 10}\n")
    request = fakes.request()
    with caplog.at_level("INFO"):
        assert queue("f", request.base, request.checked, dvc) == ["f-0000", "f-0002"]
    assert "f-0001: has failed (`dvc queue logs f-0001`): `dvc queue remove f-0001` forgets it" in caplog.messages


def experiment(name, figures=None, state=None):
    metrics = {} if figures is None else {"outputs/figures.json": {"data": figures}}
    return {
        "name": name,
        "executor": state and {"state": state},
        "revs": [{"rev": "1234", "data": {"metrics": metrics}}],
    }


def test_results_are_those_of_the_experiments_that_have_run(fakes, dvc, tmp_path):
    (tmp_path / "params.yaml").write_text("train: {learning_rate: null, steps: 100, warmup_steps: 10}\n")
    experiments = [
        experiment("s-0000", {"train": {"validation_bits_per_byte": 2.5, "steps": 100}, "evaluate": {}}),
        experiment("other"),
        experiment("s-0001", {"train": {"validation_bits_per_byte": 2.25}}, "success"),
        experiment("s-0002", {"preprocess": {"vocab_size": 384}}),
    ]
    (tmp_path / "shown.json").write_text(json.dumps([{"experiments": None}, {"experiments": experiments}]))
    request = fakes.request()
    results = gather_experiments("s", request.base, request.checked, dvc)
    assert [(row.number, row.state) for row in results.rows] == [(1, "complete"), (0, "complete"), (2, "failed")]
    assert results.best.values == {"validation_bits_per_byte": 2.25} and results.best.on_front
    assert results.best.settings == {"train.learning_rate": RATES[1]}
    assert results.rows[1].steps == 100
    assert results.rows[2].reason == "its outputs/figures.json has no validation_bits_per_byte"
    experiments[:] = [experiment("s-0000", state="running"), experiment("s-0001", state="failed")]
    experiments.append(experiment("s-0002", state="queued"))
    (tmp_path / "shown.json").write_text(json.dumps([{"experiments": experiments}]))
    results = gather_experiments("s", request.base, request.checked, dvc)
    assert results.counts() == {"failed": 1, "running": 1, "queued": 1} and results.best is None
    assert [row.reason for row in results.rows] == ["`dvc queue logs s-0001` says why", "", ""]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "train.learning_rate: isn't listed there"),
        ({"method": "tpe"}, "method = tpe: goes by what earlier trials gave"),
        ({"pruner": {"median": {}}}, "pruner: DVC ends no experiment early"),
        ({"metric": {"name": "train_loss"}}, "train_loss: DVC's experiments are compared by outputs/figures.json"),
        ({"base": ["train.weight_decay=1"]}, "DVC reads params.yaml alone"),
    ],
)
def test_what_a_queue_cannot_do_is_refused_before_anything_is_queued(fakes, dvc, tmp_path, changes, says):
    request = fakes.request(**changes)
    with pytest.raises(ConfigError) as error:
        queue("s", request.base, request.checked, dvc)
    assert says in str(error.value)
    assert not Path(tmp_path / "queued").exists()
