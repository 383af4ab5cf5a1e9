"""The manifest for Katib, against its golden file and what Katib's webhook asks of it.

Renew the golden file after a wanted change, and read the difference:

    python -m tests.sweeping.test_katib
"""

import re
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from ava_core.config import resolve
from ava_core.errors import ConfigError
from ava_core.sweeping import katib_trial
from ava_core.sweeping.checks import Base, check
from ava_core.sweeping.katib import FILTER, experiment
from ava_core.sweeping.space import read_space

GOLDEN = Path(__file__).with_name("golden") / "experiment.yaml"
IMAGE = "registry.example/ava-moe@sha256:" + "0" * 64
PARAMS = """
preset: cpu/tiny
kubernetes:
  work: {claim: ava-work, sub_path: team-a}
  steps: {train: {cpu_limit: 4, memory_limit: 8Gi, gpus: 1, node_selector: {gpu: h100}}}
"""
SPACE = """
method: tpe
metric: {name: validation_bits_per_byte, goal: minimize}
parameters:
  train.learning_rate: {min: 0.003, max: 0.03, scale: log}
  train.warmup_steps: {min: 10, max: 50, step: 10}
  model.router: {values: [top_k, expert_bias]}
  train.early_stopping_patience: {values: [null, 3]}
trials: 12
pruner: {median: {min_steps: 200}}
seed: 7
"""


def render(folder: Path, space: str = SPACE, params: str = PARAMS, **changes) -> str:
    (folder / "params.yaml").write_text(params)
    (folder / "sweep.yaml").write_text(space)
    base = Base(params=folder / "params.yaml", configs=(), overrides=(), space=folder / "sweep.yaml")
    given = {"image": IMAGE, "shards": Path("/ava/work/shards"), "max_failures": 3, **changes}
    return experiment(given.pop("name", "rates"), base, check(read_space(base.space), base), **given)


def test_the_manifest_is_the_golden_one(tmp_path):
    found = yaml.safe_load(render(tmp_path))
    golden = yaml.safe_load(GOLDEN.read_text())
    # The whole configuration, which gains a key with every setting: compared as what it stands for, below.
    texts = [each["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"] for each in (found, golden)]
    values = [text["containers"][0]["args"].pop(1) for text in texts]
    assert found == golden
    assert resolve(params_text=values[0]).config == resolve(params=tmp_path / "params.yaml").config


def test_every_placeholder_is_a_parameter_and_every_parameter_has_one(tmp_path):
    spec = yaml.safe_load(render(tmp_path))["spec"]
    template = spec["trialTemplate"]
    used = re.findall(r"\$\{trialParameters\.([^}]+)\}", yaml.safe_dump(template["trialSpec"], width=10_000))
    assert used == [each["name"] for each in template["trialParameters"]]
    assert [each["reference"] for each in template["trialParameters"]] == [each["name"] for each in spec["parameters"]]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"space": SPACE.replace("median: {min_steps: 200}", "asha: {min_steps: 200}")}, "Katib has no ASHA"),
        (
            {"space": SPACE.replace("validation_bits_per_byte", "test_loss")},
            "test_loss: a trial of Katib's only trains",
        ),
        ({"params": "preset: cpu/tiny"}, "kubernetes.work.claim: is missing"),
        ({"image": None}, "--image: is missing"),
        ({"shards": None}, "--shards: is missing"),
        ({"name": "My_Sweep"}, "small letters"),
    ],
)
def test_what_katib_lacks_is_named(tmp_path, changes, says):
    with pytest.raises(ConfigError) as error:
        render(tmp_path, **changes)
    assert says in str(error.value)


def test_a_trial_prints_its_measurements_as_the_collector_reads_them(tmp_path, capsys, monkeypatch):
    """With the program that only pretends; the pattern is the manifest's, and Katib wants an RFC 3339 time in front."""
    from ava_core.runtime.work import Entry
    from tests.sweeping.conftest import FAKE

    monkeypatch.setenv("FAKE", f'{{"journal": "{tmp_path}/journal"}}')
    work = tmp_path / "work"
    monkeypatch.setattr(katib_trial, "training_entry", lambda *_: Entry(work / "train" / "0000"))
    monkeypatch.setattr(katib_trial, "POLL_SECONDS", 0.05)
    words = ["--params-yaml", "{}", "--set", "train.learning_rate=0.01", "--shards", str(tmp_path)]
    words += ["--work", str(work), "--output", str(tmp_path / "0000" / "model")]
    assert katib_trial.main(words, FAKE) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [value for line in lines for name, value in re.findall(FILTER, line) if name == "validation_bits_per_byte"]
    losses = [*(4 - 3 * step / 100 for step in range(10, 101, 10)), 1.0]
    assert [float(value) for value in found] == pytest.approx(losses)
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z ", line) for line in lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(render(Path(folder)))
    sys.exit(0)
