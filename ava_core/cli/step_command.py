"""A typer command for a row of the step table: the flags, the configuration, and `run_step`."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ava_core.cli.version import version_option
from ava_core.steps.spec import Input, StepSpec
from ava_core.steps.table import STEPS, producers

if TYPE_CHECKING:
    from ava_core.runtime.request import Request, StepRun

    Runner = Callable[[Request, Callable[[StepRun], None]], None]

DEFAULT_WORK = Path(".ava/work")


@dataclass(frozen=True, kw_only=True)
class Instead:
    """Something else that a step's command does with the same flags.

    Attributes:
        flag: its name, with underscores.
        help: one line for `--help`.
        call: does it, with what the step was asked for and the flag's value.
        metavar: what the value is called; None for a switch.
    """

    flag: str
    help: str
    call: Callable[[Request, Any], None]
    metavar: str | None = None


COMMON: dict[str, tuple[Any, Any]] = {
    "output": (Annotated[Path, typer.Option(help="Folder to end up with; appears whole or not at all.")], ...),
    "params": (Annotated[Path | None, typer.Option(help="Parameters, as params.yaml.")], None),
    "params_yaml": (Annotated[str | None, typer.Option(help="The same as text, where there is no file.")], None),
    "config": (
        Annotated[Path | None, typer.Option(help="A file over the parameters, such as configs/cpu/small.yaml.")],
        None,
    ),
    "set_": (
        Annotated[list[str] | None, typer.Option("--set", help="key.path=value, over everything; repeatable.")],
        None,
    ),
    "work": (
        Annotated[Path, typer.Option(envvar="AVA_WORK", help="Folder for unfinished and finished work.")],
        DEFAULT_WORK,
    ),
    "force": (Annotated[bool, typer.Option("--force", help="Compute anew, and replace an output that exists.")], False),
    "executor_output": (Annotated[Path | None, typer.Option(help="Write KFP's ExecutorOutput here.")], None),
    "executor_input": (
        Annotated[str | None, typer.Option(help="KFP's ExecutorInput as JSON, which says where instead.")],
        None,
    ),
    "log_level": (
        Annotated[str, typer.Option(envvar="AVA_LOG_LEVEL", help="debug, info, warning or error.")],
        "info",
    ),
    "log_file": (
        Annotated[
            Path | None, typer.Option(envvar="AVA_LOG_FILE", help="Log file; default: OUTPUT.log beside the output.")
        ],
        None,
    ),
    "quiet": (Annotated[bool, typer.Option("--quiet", help="No progress bars.")], False),
    "version": (Annotated[bool, version_option()], False),
}


def step_command(
    name: str,
    compute: Callable[[StepRun], None],
    digest_inputs: Callable[[Any, dict[str, list[Path]]], dict[str, str]] | None = None,
    runner: Runner | None = None,
    instead: Instead | None = None,
) -> Callable[..., None]:
    """The command of a step.

    Args:
        name: the step's name in the step table.
        compute: calls the library with what the run holds.
        digest_inputs: digests of unverified inputs from the configuration and the folders given.
        runner: instead of `run_step`, for a step that may be one of several processes.
        instead: something else that can be asked for.
    """
    spec = STEPS[name]

    def command(**flags: Any) -> None:
        request = _request(spec, digest_inputs, flags)
        if instead and flags[instead.flag]:
            instead.call(request, flags[instead.flag])
            return
        from ava_core.runtime.step import run_step
        from ava_core.tracking.recording import recorded

        with recorded(request) as watched:
            (runner or run_step)(request, watched(compute))

    command.__doc__ = spec.summary
    parameters = [_parameter(port.name, *_input_option(port)) for port in spec.inputs]
    parameters += [
        _parameter(
            choice.name, Annotated[str, typer.Option(help=f"{choice.help} One of {', '.join(choice.values)}.")], ...
        )
        for choice in spec.choices
    ]
    parameters += [
        _parameter(export.name, Annotated[Path | None, typer.Option(help=f"For Kubeflow: {export.help}")], None)
        for export in spec.exports
    ]
    if instead:
        flag = f"--{instead.flag.replace('_', '-')}"
        option = typer.Option(flag, help=instead.help, metavar=instead.metavar)
        kind, default = (bool, False) if instead.metavar is None else (str | None, None)
        parameters.append(_parameter(instead.flag, Annotated[kind, option], default))
    parameters += [_parameter(flag, annotation, default) for flag, (annotation, default) in COMMON.items()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    empty = inspect.Parameter.empty if default is ... else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=empty)


def _input_option(port: Input) -> tuple[Any, Any]:
    option = typer.Option(f"--{port.name}", help=port.help or _origin(port))
    if port.repeated:
        return Annotated[list[Path] | None, option], None
    if port.required:
        return Annotated[Path, option], ...
    return Annotated[Path | None, option], None


def _origin(port: Input) -> str:
    """Where an input comes from, for `--help`."""
    steps = " or ".join(f"`ava {name}`" for name in (producers(port.kind) if port.kind else ()))
    return f"Output folder of {steps}{'; may be given several times' if port.repeated else ''}."


def _request(
    spec: StepSpec, digest_inputs: Callable[[Any, dict[str, list[Path]]], dict[str, str]] | None, flags: dict[str, Any]
) -> Request:
    """What was asked for; from here on there is a log."""
    # Before anything imports tqdm: progress is ours to show, and the bars of libraries would fill a log with halves.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from ava_core.config import resolve
    from ava_core.errors import ConfigError
    from ava_core.runtime import executor_output, logs
    from ava_core.runtime.progress import Progress
    from ava_core.runtime.request import Request

    if flags["log_level"] not in logs.LEVELS:
        raise ConfigError(f"--log-level {flags['log_level']}: must be one of {', '.join(logs.LEVELS)}")
    for choice in spec.choices:
        if flags[choice.name] not in choice.values:
            raise ConfigError(f"--{choice.name} {flags[choice.name]}: must be one of {', '.join(choice.values)}")
    resolved = resolve(
        params=flags["params"],
        params_text=flags["params_yaml"],
        config_file=flags["config"],
        overrides=flags["set_"] or (),
    )
    output = flags["output"].absolute()
    logs.configure(flags["log_level"], flags["log_file"] or output.with_name(f"{output.name}.log"))
    if resolved.preset_reason:
        logging.getLogger(__name__).info("preset auto: %s", resolved.preset_reason)
    inputs = {port.name: _folders(port, flags[port.name]) for port in spec.inputs}
    return Request(
        spec=spec,
        config=resolved.config,
        inputs=inputs,
        choices={choice.name: flags[choice.name] for choice in spec.choices},
        output=output,
        work=flags["work"].absolute(),
        force=flags["force"],
        executor_output=executor_output.wanted(flags["executor_output"], flags["executor_input"]),
        exports={export.name: flags[export.name].absolute() for export in spec.exports if flags[export.name]},
        progress=Progress(quiet=flags["quiet"]),
        digest_inputs=(lambda: digest_inputs(resolved.config, inputs)) if digest_inputs else None,
    )


def _folders(port: Input, value: Path | list[Path] | None) -> list[Path]:
    """The folders given for an input; one that only holds outputs, like outputs/quantized, stands for them."""
    if value is None:
        return []
    given = [path.absolute() for path in (value if isinstance(value, list) else [value])]
    if not port.repeated:
        return given
    return [folder for path in given for folder in (_outputs_inside(path) or [path])]


def _outputs_inside(folder: Path) -> list[Path]:
    from ava_core.runtime.manifest import NAME

    return [] if (folder / NAME).exists() else sorted(path.parent for path in folder.glob(f"*/{NAME}"))
