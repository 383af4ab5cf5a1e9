"""The container of a step: its command line, made from the step table.

KFP replaces placeholders when the step starts, so values here name what will be there; they are not the things
themselves.
"""

import functools
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kfp import dsl

from ava_core.steps.table import STEPS
from components.image import IMAGE

EXECUTOR_INPUT = "{{$}}"
"""KFP's ExecutorInput as JSON, which has the address of the file for the ExecutorOutput in it."""
EXECUTOR_OUTPUT = (
    "--executor-output",
    dsl.PIPELINE_TASK_EXECUTOR_OUTPUT_PATH_PLACEHOLDER,
    "--executor-input",
    EXECUTOR_INPUT,
)
"""Where the ExecutorOutput goes, twice. Without that file kfp.local loses a container component's output artifacts; on
a cluster it carries metrics and metadata. A cluster's launcher fills in the second only, and leaves the first as it is.
"""


def step_container(
    step: str,
    params_yaml: Any,
    *,
    inputs: Mapping[str, Sequence[Any]],
    output: Any,
    tracking_uri: Any,
    git_commit: Any,
    choices: Mapping[str, str] | None = None,
    exports: Mapping[str, Any] | None = None,
) -> dsl.ContainerSpec:
    """The container of `ava STEP`.

    Progress stays on: without a terminal it is one plain line every ten seconds, which is what a pod's log needs.

    Args:
        step: name of the step in the step table.
        params_yaml: the component's parameter that holds the whole configuration as YAML.
        inputs: arguments of the command line for each input of the step table, by input name.
        output: the component's output artifact, the folder that the step writes.
        tracking_uri: the component's parameter with the address of MLflow.
        git_commit: the component's parameter with the commit of code and parameters.
        choices: values of the step's flags that change the result.
        exports: where the parts of the output go that Kubeflow wants by themselves, by name in the step table.

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
    for name, path in (exports or {}).items():
        arguments.extend([f"--{name.replace('_', '-')}", path])
    return dsl.ContainerSpec(
        image=IMAGE,
        command=with_environment(["ava", step], tracking_uri, git_commit),
        args=[*arguments, "--output", output.path, *EXECUTOR_OUTPUT],
    )


def folder(name: str, artifact: Any) -> list[Any]:
    """The arguments of a required input."""
    return [f"--{name}", artifact.path]


def optional_folders(name: str, artifacts: Mapping[str, Any]) -> list[Any]:
    """The arguments of a repeated input: one component input each, for kfp.local can't pass a list.

    Args:
        name: the input's name; the flag is `--name`.
        artifacts: the component's inputs; None for one that `with_inputs` has left out.
    """
    given = [artifact for artifact in artifacts.values() if artifact is not None]
    return [word for artifact in given for word in folder(name, artifact)]


def with_inputs(component: Any, given: Collection[str]) -> Any:
    """The component with those of its optional artifacts that the graph gives, required then, and without the others.

    `IfPresentPlaceholder` is the other way to an optional artifact. It works in kfp.local, but a cluster with Kubeflow
    Pipelines 2.17.0 looks for the name among parameters only, and never passes the artifact (kubeflow/pipelines#14175).

    Args:
        component: made by `dsl.container_component`; its optional artifacts are None by default.
        given: names of optional artifacts.
    """
    function = component.pipeline_func
    parameters = inspect.signature(function).parameters
    kept = [
        parameter.replace(default=inspect.Parameter.empty) if parameter.name in given else parameter
        for parameter in parameters.values()
        if parameter.default is not None or parameter.name in given
    ]
    # Required ones first, as Python wants them.
    kept.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    names = [parameter.name for parameter in kept]

    @functools.wraps(function)
    def narrowed(*values: Any) -> dsl.ContainerSpec:
        return function(**{**dict.fromkeys(parameters), **dict(zip(names, values, strict=True))})

    narrowed.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
    return dsl.container_component(narrowed)


def with_environment(command: Sequence[str], tracking_uri: Any, git_commit: Any) -> list[Any]:
    """`env NAME=value ... command`: the one way to fill variables from parameters without a shell.

    `PipelineTask.set_env_variable` takes constants only. An empty value counts as not given. The third variable of a
    pipeline's step, AVA_PIPELINE_RUN, comes from the pod (pipelines/kubernetes.py) or the local runner: as an input of
    the component, Kubeflow's cache would never hit, for it differs in each run.
    """
    return ["env", f"AVA_TRACKING_URI={tracking_uri}", f"AVA_GIT_COMMIT={git_commit}", *command]
