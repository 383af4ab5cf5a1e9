"""The component of a step, made from its row of the step table.

KFP reads name, inputs, outputs and descriptions of a component off a function: its signature and its docstring. So both
are made here. The values of a call are placeholders, which KFP replaces when the step starts.
"""

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from kfp import dsl

from ava_core.steps.spec import Export, Input, StepSpec, flag
from ava_core.steps.table import STEPS
from components.container import EXECUTOR_OUTPUT, PARAMETERS, with_environment
from components.image import IMAGE

NOTHING: Mapping[str, Any] = {}


def step_component(
    step: str,
    choices: Mapping[str, str] = NOTHING,
    variants: Mapping[str, Sequence[str]] = NOTHING,
    named: Collection[str] = (),
) -> Any:
    """The component of `ava STEP`.

    Args:
        step: name of the step in the step table.
        choices: values of the flags that change the result. They are a part of the command and of the component's name
            rather than parameters, for kfp.local names a task's folder after its component: two tasks of one component
            would write into the same folder.
        variants: for each repeated input, the outputs that the graph gives: each is an input `NAME_VARIANT`, for
            kfp.local can't pass a list. They are required. `IfPresentPlaceholder` is how a component has optional
            artifacts, but a cluster with Kubeflow Pipelines 2.17.0 looks for the name among parameters only, and never
            passes the artifact (kubeflow/pipelines#14175).
        named: of the inputs that the configuration may name, or that only some pipelines make, those that there are:
            the component has them as others.

    Raises:
        ValueError: the choices are not those of the step table.
    """
    spec = STEPS[step]
    for choice in spec.choices:
        if choices.get(choice.name) not in choice.values:
            raise ValueError(f"component {step}: {choice.name} must be one of {', '.join(choice.values)}")
    folders = dict(_folders(spec, variants, named))
    descriptions = {**PARAMETERS, **spec.descriptions, **{name: text for name, (_, text) in folders.items()}}
    signature = inspect.Signature([_parameter(name, kind, default) for name, kind, default in _ports(spec, folders)])

    def container(*values: Any) -> dsl.ContainerSpec:
        given = dict(zip(signature.parameters, values, strict=True))
        arguments = ["--params-yaml", given["params_yaml"]]
        for name, (port, _) in folders.items():
            arguments += [flag(port.name), given[name].path]
        for name, value in choices.items():
            arguments += [flag(name), value]
        for export in spec.exports:
            arguments += [flag(export.name), given[export.name].path if export.file else given[export.name]]
        return dsl.ContainerSpec(
            image=IMAGE,
            command=with_environment(["ava", *spec.words], given["tracking_uri"], given["git_commit"]),
            args=[*arguments, "--output", given[spec.output].path, *EXECUTOR_OUTPUT],
        )

    container.__name__ = "_".join([step, *choices.values()])
    lines = [f"    {name}: {text}" for name, text in descriptions.items()]
    container.__doc__ = "\n".join([spec.summary, "", "Args:", *lines])
    container.__signature__ = signature  # type: ignore[attr-defined]
    return dsl.container_component(container)


def _folders(
    spec: StepSpec, variants: Mapping[str, Sequence[str]], named: Collection[str]
) -> Iterator[tuple[str, tuple[Input, str]]]:
    """The component's inputs, with the step's input that each belongs to and its description."""
    others = (port for port in (*spec.named_inputs, *spec.inputs_where_made) if port.name in named)
    for port in (*spec.pipeline_inputs, *others):
        steps = [name for name, other in STEPS.items() if port.kind is not None and other.kind == port.kind]
        origin = f"Output of {' or '.join(steps)}"
        if not port.repeated:
            yield port.name, (port, port.description or f"{origin}.")
            continue
        for variant in variants.get(port.name, ()):
            yield f"{port.name}_{variant}", (port, f"{origin} with {variant}.")


def _ports(spec: StepSpec, folders: Mapping[str, tuple[Input, str]]) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and default of each parameter, those with a default last."""
    required = inspect.Parameter.empty
    yield "params_yaml", str, required
    for name, (port, _) in folders.items():
        yield name, dsl.Input[_artifact(port.kind.artifact if port.kind else "Dataset")], required
    yield spec.output, dsl.Output[_artifact(spec.kind.artifact)], required
    yield "metrics", dsl.Output[dsl.Metrics], required
    for export in spec.exports:
        yield export.name, _export_type(export), required
    yield "tracking_uri", str, ""
    yield "git_commit", str, ""


def _export_type(export: Export) -> Any:
    if export.file:
        return dsl.Output[_artifact(export.artifact)]
    return dsl.OutputPath(bool if export.boolean else int)


def _artifact(name: str) -> Any:
    return getattr(dsl, name)


def _parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind, default=default)
