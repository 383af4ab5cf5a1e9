"""The flags of steps' commands: those that all have, and what a step may do instead of its work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ava_core.cli.version import version_option
from ava_core.steps.spec import flag

if TYPE_CHECKING:
    from ava_core.runtime.request import Request

DEFAULT_WORK = Path(".ava/work")


@dataclass(frozen=True, kw_only=True)
class Instead:
    """Something else that a step's command does with the same flags.

    Attributes:
        flag: its name, with underscores; one more at the end where it is a word of Python.
        help: one line for `--help`.
        call: does it, with what the step was asked for and the values of all flags.
        metavar: what the value is called; None for a switch.
        options: flags that mean something only with this one: annotation and default by name, with underscores.
    """

    flag: str
    help: str
    call: Callable[[Request, Mapping[str, Any]], None]
    metavar: str | None = None
    options: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def refuse_options_alone(self, flags: Mapping[str, Any]) -> None:
        """Refuse options without the flag that they belong to."""
        from ava_core.errors import ConfigError

        for name, (_, default) in self.options.items():
            if not flags[self.flag] and flags[name] != default:
                raise ConfigError(f"{flag(name)}: means something only with {flag(self.flag.rstrip('_'))}")


@dataclass(frozen=True, kw_only=True)
class Switch:
    """A flag of a step that is short for a setting.

    Attributes:
        flag: its name, with underscores.
        setting: the dotted key that it makes true.
        help: one line for `--help`.
    """

    flag: str
    setting: str
    help: str


def flag_of(kind: Any, default: Any, text: str, *names: str, **more: Any) -> tuple[Any, Any]:
    """A parameter of a command: its annotation, and its default, `...` for a required one."""
    return Annotated[kind, typer.Option(*names, help=text, **more)], default


COMMON = {
    "output": flag_of(Path, ..., "Output folder; written atomically."),
    "params": flag_of(Path | None, None, "File of parameters, such as params.yaml."),
    "params_yaml": flag_of(str | None, None, "Parameters as YAML text, for a container without such a file."),
    "config": flag_of(
        list[Path] | None,
        None,
        "File whose values override the parameters, such as configs/cpu/small.yaml. Repeatable: later ones win.",
    ),
    "set_": flag_of(list[str] | None, None, "key.path=value; overrides all files. Repeatable.", "--set"),
    "work": flag_of(
        Path, DEFAULT_WORK, "Work folder: state of unfinished steps, cache of finished outputs.", envvar="AVA_WORK"
    ),
    "force": flag_of(bool, False, "Ignore cached work, and overwrite an output that exists.", "--force"),
    "executor_output": flag_of(Path | None, None, "For Kubeflow: file to write KFP's ExecutorOutput to."),
    "executor_input": flag_of(
        str | None, None, "For Kubeflow: KFP's ExecutorInput as JSON, which names that file on a cluster."
    ),
    "log_level": flag_of(str, "info", "debug, info, warning or error.", envvar="AVA_LOG_LEVEL"),
    "log_file": flag_of(Path | None, None, "Log file; default: OUTPUT.log beside the output.", envvar="AVA_LOG_FILE"),
    "quiet": flag_of(bool, False, "No progress bars.", "--quiet"),
    "version": (Annotated[bool, version_option()], False),
}
