"""dvc.yaml against the step table and the graph. Renew it after a change of these:

.venv/bin/python -m pipelines.stages --output dvc.yaml
"""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ava_core.errors import ConfigError
from ava_core.steps.spec import Input
from ava_core.steps.table import STEPS
from pipelines.compile import compile_pipeline
from pipelines.graph import Graph
from pipelines.stages import check, describe, render

ROOT = Path(__file__).parents[2]


def test_dvc_yaml_is_what_the_step_table_and_the_graph_make():
    assert (ROOT / "dvc.yaml").read_text() == render()


@pytest.mark.parametrize(
    "alignment", [[], ["sft"], ["sft", "reward", "dpo", "grpo"], ["reward", "grpo", "sft", "dpo"], ["sft", "index"]]
)
def test_stages_read_what_the_tasks_of_the_graph_read(alignment):
    """That an input is the latest output of its kind is DVC's rule alone: the graph says which task gives it."""
    graph = Graph(compile_pipeline(["int8"], stages=alignment))
    stages = yaml.safe_load(render(alignment))["stages"]
    tasks = {
        name: task
        for component in [graph.spec["root"], *graph.spec["components"].values()]
        for name, task in component.get("dag", {}).get("tasks", {}).items()
    }
    seen = 0
    for name, task in tasks.items():
        step = graph.component(name).step if name in graph.order else None
        if step is None:
            continue
        read = {
            f"outputs/{STEPS[graph.component(given['taskOutputArtifact']['producerTask']).step].output}"
            for given in task.get("inputs", {}).get("artifacts", {}).values()
            if "taskOutputArtifact" in given and given["taskOutputArtifact"]["producerTask"] != "importer"
        }
        stage = stages[step]
        assert read == {path for path in stage["deps"] if path.startswith("outputs/")} - {f"outputs/keys/{step}.json"}
        seen += 1
    assert seen == len(stages) - len(["keys", "figures"])


def test_stages_of_alignment_that_the_parameters_do_not_name_are_refused(tmp_path):
    (tmp_path / "dvc.yaml").write_text(render(["sft"]))
    check(tmp_path / "dvc.yaml", ["sft"])
    with pytest.raises(ConfigError, match=r"the stages sft between .* ask for none: run `python -m"):
        check(tmp_path / "dvc.yaml", [])
    with pytest.raises(ConfigError, match=r"the stages none between .* ask for sft, index: run"):
        check(ROOT / "dvc.yaml", ["sft", "index"])


def test_of_two_steps_that_make_models_the_second_reads_the_first_and_is_read(monkeypatch):
    models = Input(name="model", kind=STEPS["train"].kind)
    tune = replace(STEPS["train"], name="tune", output="tuned", inputs=(models,))
    monkeypatch.setitem(STEPS, "tune", tune)
    stages = describe(["preprocess", "train", "tune", "quantize"])["stages"]
    assert stages["tune"]["deps"] == ["outputs/model", "outputs/keys/tune.json"]
    assert "outputs/tuned" in stages["quantize"]["deps"] and "outputs/model" not in stages["quantize"]["deps"]
