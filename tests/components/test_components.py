"""Every component against the step table and against the real command line."""

import re

import pytest
import typer.main
import yaml
from google.protobuf import json_format

from ava_core.cli.main import app
from ava_core.steps.schemes import SCHEMES
from ava_core.steps.table import STEPS
from components.image import IMAGE
from components.preprocess_part import preprocess_part
from components.record_outcome import record_outcome
from components.step import step_component
from pipelines.compile import compile_pipeline

QUANTIZED = {"quantized": tuple(SCHEMES)}
PROGRAMS = {
    **{step: [step] for step in STEPS if not STEPS[step].choices},
    **{step: [f"{step}-{value}" for value in spec.choices[0].values] for step, spec in STEPS.items() if spec.choices},
    "record-outcome": ["record-outcome"],
}
"""The components that run each command."""
PROGRAMS["preprocess"].append("preprocess-part")
COMPONENTS = [
    *(step_component(step, variants=QUANTIZED) for step, spec in STEPS.items() if not spec.choices),
    *(
        step_component(step, {choice.name: value}, QUANTIZED)
        for step, spec in STEPS.items()
        for choice in spec.choices
        for value in choice.values
    ),
    preprocess_part,
    record_outcome,
]
IRS = {component.name: json_format.MessageToDict(component.pipeline_spec) for component in COMPONENTS}


def executor(name: str) -> dict:
    return IRS[name]["deploymentSpec"]["executors"][f"exec-{name}"]["container"]


def definition(name: str) -> dict:
    return IRS[name]["components"][f"comp-{name}"]


def flags_of(name: str) -> list[str]:
    """The flags of a component's command, those of optional inputs included."""
    return re.findall(r"--[a-z][a-z-]*", " ".join(executor(name)["args"]))


def test_every_component_is_called_after_its_command():
    assert sorted(IRS) == sorted(name for names in PROGRAMS.values() for name in names)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_flag_is_one_of_the_real_command_and_none_that_is_required_is_left_out(program):
    words = STEPS[program].words if program in STEPS else [program]
    command = typer.main.get_command(app).commands[words[0]]
    options = {name: option for option in command.params for name in option.opts}
    required = {option.opts[0] for option in command.params if option.required}
    for name in PROGRAMS[program]:
        flags = {*flags_of(name), *(word for word in words if word.startswith("--"))}
        assert flags <= set(options), flags - set(options)
        assert required <= flags, required - flags


@pytest.mark.parametrize("step", STEPS)
def test_inputs_outputs_and_exports_are_those_of_the_step_table(step):
    spec = STEPS[step]
    for name in set(PROGRAMS[step]) - {"preprocess-part"}:
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
    for name in PROGRAMS[step]:
        container = executor(name)
        assert container["image"] == IMAGE
        assert container["command"][-1 - len(STEPS[step].words) :] == ["ava", *STEPS[step].words]
        assert container["command"][0] in ("ava", "env")


def test_scheme_is_part_of_the_command_of_each_quantize_component():
    for scheme in SCHEMES:
        arguments = executor(f"quantize-{scheme}")["args"]
        assert arguments[arguments.index("--scheme") + 1] == scheme


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_container_gets_address_and_commit_through_the_environment(program):
    for name in PROGRAMS[program]:
        command = executor(name)["command"]
        program_words = ["ava", *(STEPS[program].words if program in STEPS else [program])]
        assert command[0] == "env" and command[-len(program_words) :] == program_words
        assert command[1 : -len(program_words)] == [
            "AVA_TRACKING_URI={{$.inputs.parameters['tracking_uri']}}",
            "AVA_GIT_COMMIT={{$.inputs.parameters['git_commit']}}",
        ]


def test_only_placeholders_that_a_cluster_fills_in_tell_the_steps_anything():
    """Its launcher knows inputs, outputs by name and the whole ExecutorInput; `--executor-output` is for local runs."""
    known = re.compile(
        r"{{\$(}}|\.inputs\.(parameters\['\w+'\]|artifacts\['\w+'\]\.path)}}|\.outputs\.\w+\['\w+'\]\.\w+}})"
    )
    for program in PROGRAMS:
        for name in PROGRAMS[program]:
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


@pytest.mark.parametrize("choices", [{}, {"scheme": "int3"}])
def test_component_without_a_value_of_the_step_table_is_refused(choices):
    with pytest.raises(ValueError, match="component quantize: scheme must be one of fp32, int8, int4"):
        step_component("quantize", choices)


@pytest.mark.parametrize("step", STEPS)
def test_every_parameter_and_folder_of_a_component_is_described(step):
    for name in PROGRAMS[step]:
        inputs = definition(name)["inputDefinitions"]
        assert [key for part in inputs.values() for key, port in part.items() if not port.get("description")] == []
