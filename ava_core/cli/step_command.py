"""A typer command for a row of the step table: the flags, the configuration, and `run_step`."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.cli.step_flags import COMMON, Instead, Switch, flag_of
from ava_core.steps.spec import Input, StepSpec, flag
from ava_core.steps.table import STEPS
from ava_core.steps.tools import origin

if TYPE_CHECKING:
    from ava_core.runtime.request import Request, StepRun
    from ava_core.tracking.records import Row

    Runner = Callable[[Request, Callable[[StepRun], None]], None]

DigestInputs = Callable[[Any, dict[str, list[Path]]], dict[str, str]]


def step_command(
    name: str,
    compute: Callable[[StepRun], None],
    digest_inputs: DigestInputs | None = None,
    runner: Runner | None = None,
    instead: tuple[Instead, ...] = (),
    switches: tuple[Switch, ...] = (),
) -> Callable[..., None]:
    """The command of a step.

    Args:
        name: the step's name in the step table.
        compute: calls the library with what the run holds.
        digest_inputs: digests of unverified inputs from the configuration and the folders given.
        runner: instead of `run_step`, for a step that may be one of several processes.
        instead: what else can be asked for; the first that is, is done.
        switches: flags that are short for settings.
    """
    spec = STEPS[name]

    def command(**flags: Any) -> None:
        short = [f"{switch.setting}=true" for switch in switches if flags[switch.flag]]
        for other in instead:
            other.refuse_options_alone(flags)
        request = _request(spec, digest_inputs, flags, short)
        asked = next((other for other in instead if flags[other.flag]), None)
        if asked:
            asked.call(request, flags)
        else:
            run_request(request, compute, runner)

    command.__doc__ = spec.summary
    flags = {port.name: _input_flag(port) for port in spec.inputs}
    for choice in spec.choices:
        flags[choice.name] = flag_of(str, ..., f"{choice.help} One of {', '.join(choice.values)}.")
    for export in spec.exports:
        flags[export.name] = flag_of(Path | None, None, f"For Kubeflow: {export.help}")
    for other in instead:
        kind, default = (bool, False) if other.metavar is None else (str | None, None)
        flags[other.flag] = flag_of(kind, default, other.help, flag(other.flag.rstrip("_")), metavar=other.metavar)
        flags.update(other.options)
    for switch in switches:
        flags[switch.flag] = flag_of(bool, False, switch.help, flag(switch.flag))
    parameters = [_parameter(name, *given) for name, given in {**flags, **COMMON}.items()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def methods_command(
    text: str,
    methods: Mapping[str, Callable[[StepRun], None]],
    digest_inputs: Mapping[str, DigestInputs],
    runner: Runner | None = None,
) -> Callable[..., None]:
    """The command of steps that are methods of one thing: `--method NAME` says which, and each has its own inputs.

    Args:
        text: what the flag decides, for `--help`.
        methods: what computes each step, by its name in the step table.
        digest_inputs, runner: as in `step_command`; the first for each step that has any.
    """
    commands = {name: step_command(name, compute, digest_inputs.get(name), runner) for name, compute in methods.items()}
    flags = {name: inspect.signature(command).parameters for name, command in commands.items()}
    merged = {flag: parameter for found in flags.values() for flag, parameter in found.items()}
    optional = {flag for flag in merged if any(flag not in found for found in flags.values())}

    def command(*, method: str, **given: Any) -> None:
        from ava_core.errors import ConfigError

        if method not in methods:
            raise ConfigError(f"--method {method}: must be one of {', '.join(methods)}")
        own = flags[method]
        for name, parameter in merged.items():
            is_given = name in optional and given[name] is not None
            if name not in own and is_given:
                raise ConfigError(f"{flag(name)}: is no input of --method {method}: leave it out")
            if name in own and name in optional and not is_given and parameter.default is inspect.Parameter.empty:
                raise ConfigError(f"{flag(name)} is missing: --method {method} needs it")
        commands[method](**{name: given[name] for name in own})

    command.__doc__ = "\n\n".join([text, *(f"{name}: {STEPS[name].summary}" for name in methods)])
    chosen = _parameter("method", *flag_of(str, ..., f"{text} One of {', '.join(methods)}."))
    rest = [
        parameter.replace(default=None, annotation=parameter.annotation | None) if name in optional else parameter
        for name, parameter in merged.items()
    ]
    command.__signature__ = inspect.Signature([chosen, *rest])  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in (chosen, *rest)}
    return command


def request_for(
    step: str, request: Request, inputs: Mapping[str, list[Path]], digest_inputs: Callable[[], dict[str, str]]
) -> Request:
    """What another step is asked for by the flags of this one."""
    return replace(request, spec=STEPS[step], inputs=inputs, digest_inputs=digest_inputs)


def run_request(request: Request, compute: Callable[[StepRun], None], runner: Runner | None = None) -> None:
    """Run a step under its contract, recorded in MLflow."""
    from ava_core.runtime.step import run_step
    from ava_core.tracking.labels import write_labels
    from ava_core.tracking.recording import recorded

    with recorded(request, _rows_of) as watched:
        (runner or run_step)(request, watched(compute))
    write_labels(request.output, request.config.run)


def _rows_of(evaluation: Path) -> Iterable[Row]:
    from ava_core.evaluation.rows import read_rows

    return read_rows(evaluation)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    empty = inspect.Parameter.empty if default is ... else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=empty)


def _input_flag(port: Input) -> tuple[Any, Any]:
    text = port.help or _origin(port)
    if port.setting or port.registered:
        kind, default = (str, ...) if port.required and not port.setting else (str | None, None)
        return flag_of(kind, default, text, flag(port.name), metavar="FOLDER|models:/NAME@ALIAS")
    if port.repeated:
        return flag_of(list[Path] | None, None, text, flag(port.name))
    return flag_of(Path, ..., text) if port.required else flag_of(Path | None, None, text)


def _origin(port: Input) -> str:
    """Where an input comes from, for `--help`."""
    assert port.kind is not None  # a folder that no step makes has a text of its own
    where = origin(port.kind)
    return f"{where[0].upper()}{where[1:]}{'; may be given several times' if port.repeated else ''}."


def _request(
    spec: StepSpec,
    digest_inputs: DigestInputs | None,
    flags: dict[str, Any],
    settings: list[str],
) -> Request:
    """What was asked for; from here on there is a log."""
    # Before anything imports tqdm: progress is ours to show, and the bars of libraries would fill a log with halves.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from ava_core.cli.named_inputs import (
        architecture_reader,
        as_settings,
        find_named,
        find_registered,
        refuse_output_among,
    )
    from ava_core.config import resolve
    from ava_core.errors import ConfigError
    from ava_core.progress import Progress
    from ava_core.runtime import executor_output, logs
    from ava_core.runtime.request import Request

    if flags["log_level"] not in logs.LEVELS:
        raise ConfigError(f"--log-level {flags['log_level']}: must be one of {', '.join(logs.LEVELS)}")
    for choice in spec.choices:
        if flags[choice.name] not in choice.values:
            raise ConfigError(f"--{choice.name} {flags[choice.name]}: must be one of {', '.join(choice.values)}")
    resolved = resolve(
        params=flags["params"],
        params_text=flags["params_yaml"],
        config_files=flags["config"] or (),
        overrides=[*(flags["set_"] or ()), *settings, *as_settings(spec, flags)],
        inherit=architecture_reader(spec, flags["work"]),
    )
    output = flags["output"].absolute()
    logs.configure(flags["log_level"], flags["log_file"] or output.with_name(f"{output.name}.log"))
    if resolved.preset_reason:
        logging.getLogger(__name__).info("preset auto: %s", resolved.preset_reason)
    unnamed = [port for port in spec.inputs if not port.setting]
    inputs = {port.name: _folders(port, flags[port.name]) for port in unnamed if not port.registered}
    inputs |= {port.name: find_registered(port, flags[port.name], flags["work"]) for port in unnamed if port.registered}
    inputs |= find_named(spec, resolved.config, flags["work"], inputs)
    refuse_output_among(inputs, spec, output)
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
