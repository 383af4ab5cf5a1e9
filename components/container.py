"""The container of a step: its command line, made from the step table.

KFP replaces placeholders when the step starts, so values here name what will be there; they are not the things
themselves.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kfp import dsl

from ava_core.steps import STEPS
from components.image import IMAGE

EXECUTOR_OUTPUT = ("--executor-output", dsl.PIPELINE_TASK_EXECUTOR_OUTPUT_PATH_PLACEHOLDER)
"""Without this file kfp.local loses the output artifacts of a container component; on a cluster it carries metadata."""


def step_container(
    step: str,
    params_yaml: Any,
    *,
    inputs: Mapping[str, Sequence[Any]],
    output: Any,
    choices: Mapping[str, str] | None = None,
    exports: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
) -> dsl.ContainerSpec:
    """The container of `ava STEP`.

    Progress stays on: without a terminal it is one plain line every ten seconds, which is what a pod's log needs.

    Args:
        step: name of the step in the step table.
        params_yaml: the component's parameter that holds the whole configuration as YAML.
        inputs: arguments of the command line for each input of the step table, by input name.
        output: the component's output artifact, the folder that the step writes.
        choices: values of the step's flags that change the result.
        exports: where the parts of the output go that Kubeflow wants by themselves, by name in the step table.
        environment: variables from parameters; see `with_environment`.

    Raises:
        ValueError: the inputs, choices or exports are not those of the step table.
    """
    spec = STEPS[step]
    for kind, given, known in (
        ("inputs", inputs, [port.name for port in spec.pipeline_inputs]),
        ("choices", choices or {}, [choice.name for choice in spec.choices]),
        ("exports", exports or {}, [export.name for export in spec.exports]),
    ):
        if sorted(given) != sorted(known):
            raise ValueError(f"component {step}: {kind} {sorted(given)}: the step table has {sorted(known)}")
    arguments = ["--params-yaml", params_yaml]
    for argument in inputs.values():
        arguments.extend(argument)
    for name, value in (choices or {}).items():
        arguments.extend([f"--{name}", value])
    for name, place in (exports or {}).items():
        arguments.extend([f"--{name.replace('_', '-')}", place])
    return dsl.ContainerSpec(
        image=IMAGE,
        command=with_environment(["ava", step], environment or {}),
        args=[*arguments, "--output", output.path, *EXECUTOR_OUTPUT],
    )


def folder(name: str, artifact: Any) -> list[Any]:
    """The arguments of a required input."""
    return [f"--{name}", artifact.path]


def optional_folders(name: str, artifacts: Mapping[str, Any]) -> list[Any]:
    """The arguments of a repeated input: one optional component input each, for kfp.local can't pass a list."""
    return [
        dsl.IfPresentPlaceholder(input_name=input_name, then=[f"--{name}", artifact.path])
        for input_name, artifact in artifacts.items()
    ]


def with_environment(command: list[str], environment: Mapping[str, Any]) -> list[Any]:
    """`env NAME=value ... command`: the one way to fill a variable from a parameter without a shell.

    `PipelineTask.set_env_variable` takes constants only. An empty value counts as not given.
    """
    if not environment:
        return list(command)
    return ["env", *(dsl.ConcatPlaceholder([f"{name}=", value]) for name, value in environment.items()), *command]
