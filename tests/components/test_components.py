"""Every component against the step table, against the real command line, and against its README."""

import re
from pathlib import Path

import pytest
import typer.main
import yaml

from ava_core.cli.main import app
from ava_core.config.kubernetes import KubernetesConfig
from ava_core.steps.schemes import SCHEMES
from ava_core.steps.table import STEPS
from components.container import step_container
from components.image import IMAGE
from pipelines.compile import compile_pipeline

ROOT = Path(__file__).parents[2]
COMPONENTS = sorted(path.parent.name for path in (ROOT / "components").glob("*/component.py"))
IR = next(yaml.safe_load_all(compile_pipeline(SCHEMES, cluster=KubernetesConfig(preprocess_parts=2))))


def executor(name: str) -> dict:
    return IR["deploymentSpec"]["executors"][f"exec-{name}"]["container"]


def definition(name: str) -> dict:
    return IR["components"][f"comp-{name}"]


def compiled_names(folder: str) -> list[str]:
    """The names in the IR of the components that run the command of a folder."""
    dashed = folder.replace("_", "-")
    if folder == "quantize":
        return [f"{dashed}-{scheme}" for scheme in SCHEMES]
    return [dashed, f"{dashed}-part"] if folder == "preprocess" else [dashed]


def flags_of(name: str) -> list[str]:
    """The flags of a component's command, those of optional inputs included."""
    return re.findall(r"--[a-z][a-z-]*", " ".join(executor(name)["args"]))


def test_there_is_a_component_for_every_step():
    assert set(COMPONENTS) == set(STEPS) | {"record_outcome"}


@pytest.mark.parametrize("folder", COMPONENTS)
def test_every_flag_is_one_of_the_real_command_and_none_that_is_required_is_left_out(folder):
    command = typer.main.get_command(app).commands[folder.replace("_", "-")]
    options = {name: option for option in command.params for name in option.opts}
    required = {option.opts[0] for option in command.params if option.required}
    for name in compiled_names(folder):
        flags = set(flags_of(name))
        assert flags <= set(options), flags - set(options)
        assert required <= flags, required - flags


@pytest.mark.parametrize("step", STEPS)
def test_inputs_outputs_and_exports_are_those_of_the_step_table(step):
    spec = STEPS[step]
    for name in set(compiled_names(step)) - {"preprocess-part"}:
        inputs = definition(name)["inputDefinitions"]["artifacts"]
        expected = {port.name for port in spec.pipeline_inputs if not port.repeated}
        repeated = {f"{port.name}_{scheme}" for port in spec.pipeline_inputs if port.repeated for scheme in SCHEMES}
        assert set(inputs) == expected | repeated
        outputs = definition(name)["outputDefinitions"]
        files = {export.name for export in spec.exports if export.file}
        figures = {export.name for export in spec.exports if export.metric}
        assert set(outputs["artifacts"]) == {spec.output, "metrics"} | files
        assert set(outputs.get("parameters", {})) == figures


@pytest.mark.parametrize("step", STEPS)
def test_commands_run_the_step_without_a_shell_in_the_one_image(step):
    for name in compiled_names(step):
        container = executor(name)
        assert container["image"] == IMAGE
        assert container["command"][-2:] == ["ava", step]
        assert container["command"][0] in ("ava", "env")


def test_scheme_is_part_of_the_command_of_each_quantize_component():
    for scheme in SCHEMES:
        arguments = executor(f"quantize-{scheme}")["args"]
        assert arguments[arguments.index("--scheme") + 1] == scheme


@pytest.mark.parametrize("folder", COMPONENTS)
def test_every_container_gets_address_and_commit_through_the_environment(folder):
    for name in compiled_names(folder):
        program, *variables, ava, command = executor(name)["command"]
        assert (program, ava, command) == ("env", "ava", folder.replace("_", "-"))
        assert variables == [
            "AVA_TRACKING_URI={{$.inputs.parameters['tracking_uri']}}",
            "AVA_GIT_COMMIT={{$.inputs.parameters['git_commit']}}",
        ]


def test_only_placeholders_that_a_cluster_fills_in_tell_the_steps_anything():
    """Its launcher knows inputs, outputs by name and the whole ExecutorInput; `--executor-output` is for local runs."""
    known = re.compile(
        r"{{\$(}}|\.inputs\.(parameters\['\w+'\]|artifacts\['\w+'\]\.path)}}|\.outputs\.\w+\['\w+'\]\.\w+}})"
    )
    for folder in COMPONENTS:
        for name in compiled_names(folder):
            words = [*executor(name)["command"], *executor(name)["args"]]
            assert words[words.index("--executor-input") + 1] == "{{$}}"
            words.remove("{{$.outputs.output_file}}")
            assert [word for word in words if "{" in word and not known.search(word)] == []


def test_optional_artifacts_that_the_graph_does_not_give_are_left_out_and_the_others_are_required():
    ir = next(yaml.safe_load_all(compile_pipeline(["int4"])))
    for name in ("evaluate", "gate", "register"):
        inputs = ir["components"][f"comp-{name}"]["inputDefinitions"]["artifacts"]
        assert "quantized_int8" not in inputs and "isOptional" not in inputs["quantized_int4"]
        arguments = ir["deploymentSpec"]["executors"][f"exec-{name}"]["container"]["args"]
        assert arguments.count("--quantized") == 1
        assert arguments[arguments.index("--quantized") + 1] == "{{$.inputs.artifacts['quantized_int4'].path}}"


@pytest.mark.parametrize("changes", [{"inputs": {}}, {"choices": {"scheme": "int8"}}, {"exports": {"report": "x"}}])
def test_component_that_differs_from_the_step_table_is_refused(changes):
    given = {"inputs": {"shards": ["--shards", "x"]}, "choices": {}, "exports": {}}
    with pytest.raises(ValueError, match="component train: "):
        step_container("train", "p", output=None, tracking_uri="", git_commit="", **{**given, **changes})


@pytest.mark.parametrize("folder", COMPONENTS)
def test_readme_names_every_input_and_output(folder):
    text = (ROOT / "components" / folder / "README.md").read_text()
    rows = set(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE))
    for name in set(compiled_names(folder)) - {"preprocess-part"}:
        inputs, outputs = definition(name)["inputDefinitions"], definition(name)["outputDefinitions"]
        named = {key for part in (inputs, outputs) for kind in part.values() for key in kind}
        assert rows == named
