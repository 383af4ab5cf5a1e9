"""Every component against the step table, against the real command line, and against its README."""

import re
from pathlib import Path

import pytest
import typer.main
import yaml

from ava_core.cli.main import app
from ava_core.steps import SCHEMES, STEPS
from components.container import step_container
from components.image import IMAGE
from pipelines.compile import compile_pipeline

ROOT = Path(__file__).parents[2]
COMPONENTS = sorted(path.parent.name for path in (ROOT / "components").glob("*/component.py"))
IR = yaml.safe_load(compile_pipeline(SCHEMES))


def executor(name: str) -> dict:
    return IR["deploymentSpec"]["executors"][f"exec-{name}"]["container"]


def definition(name: str) -> dict:
    return IR["components"][f"comp-{name}"]


def compiled_names(folder: str) -> list[str]:
    """The names in the IR of the components that a folder holds."""
    dashed = folder.replace("_", "-")
    return [f"{dashed}-{scheme}" for scheme in SCHEMES] if folder == "quantize" else [dashed]


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
    for name in compiled_names(step):
        inputs = definition(name)["inputDefinitions"]["artifacts"]
        expected = {port.name for port in spec.pipeline_inputs if not port.repeated}
        repeated = {f"{port.name}_{scheme}" for port in spec.pipeline_inputs if port.repeated for scheme in SCHEMES}
        assert set(inputs) == expected | repeated
        assert {key for key, value in inputs.items() if value.get("isOptional")} == repeated
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


def test_register_takes_address_and_commit_through_the_environment():
    command = " ".join(executor("register")["command"])
    assert "AVA_TRACKING_URI=" in command and "AVA_GIT_COMMIT=" in command


@pytest.mark.parametrize("changes", [{"inputs": {}}, {"choices": {"scheme": "int8"}}, {"exports": {"report": "x"}}])
def test_component_that_differs_from_the_step_table_is_refused(changes):
    given = {"inputs": {"shards": ["--shards", "x"]}, "choices": {}, "exports": {}}
    with pytest.raises(ValueError, match="component train: "):
        step_container("train", "p", output=None, **{**given, **changes})


@pytest.mark.parametrize("folder", COMPONENTS)
def test_readme_names_every_input_and_output(folder):
    text = (ROOT / "components" / folder / "README.md").read_text()
    rows = set(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE))
    for name in compiled_names(folder):
        inputs, outputs = definition(name)["inputDefinitions"], definition(name)["outputDefinitions"]
        named = {key for part in (inputs, outputs) for kind in part.values() for key in kind}
        assert rows == named
