"""What the three runners share on their command lines: configuration flags, exit codes, the pipeline's arguments."""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.config import AvaConfig, Resolved, resolve, to_yaml
from ava_core.config.yaml_text import is_whole
from ava_core.errors import AvaError, ConfigError
from ava_core.interruption import Interrupted, handle_signals, outlive_terminal
from ava_core.redaction import redact

if TYPE_CHECKING:
    from pipelines.graph import Graph


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add --params, --config, --set and --settings, with the meaning that they have for `ava`."""
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="YAML file of parameters (default: %(default)s)"
    )
    parser.add_argument(
        "--config",
        action="append",
        type=Path,
        default=[],
        help="YAML file over the parameters, such as configs/cpu/small.yaml (repeatable: later ones win)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="one value, over those of all files; repeatable",
    )
    parser.add_argument(
        "--settings",
        action="extend",
        type=split_settings,
        metavar="'KEY=VALUE KEY=VALUE'",
        dest="overrides",
        help="several of --set in one text, as make's SET has them",
    )


class FlagsInOneText(argparse.Action):
    """A flag whose value holds other flags, divided and unquoted as a shell would, as make's SUBMIT has them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        try:
            words = shlex.split(str(values))
        except ValueError as error:
            raise argparse.ArgumentError(self, f"{values}: {error}") from error
        parser.parse_args(words, namespace)


def split_settings(text: str) -> list[str]:
    """The settings of `key=value key=value`, each as --set takes it.

    A value ends where the next `key=` begins, unless a quote or a bracket of it is still open there:
    `evaluate.prompts=["To be, or", "x = 1"] seed=3` are two.

    Raises:
        ConfigError: the text doesn't begin with a key.
    """
    text = text.strip()
    starts = [found.start() for found in re.finditer(r"(?<!\S)[A-Za-z_][\w.]*=", text)]
    if text and starts[:1] != [0]:
        raise ConfigError(f"--settings {text}: must be key.path=value, and further ones after a space")
    settings, begin = [], 0
    for end in starts[1:]:
        if is_whole(text[begin:end].partition("=")[2]):
            settings.append(text[begin:end].rstrip())
            begin = end
    return [*settings, text[begin:]] if text else []


def resolve_flags(flags: argparse.Namespace) -> Resolved:
    """The configuration that the flags of `add_config_flags` ask for.

    Raises:
        ConfigError: one line per fault.
    """
    return resolve(params=flags.params, config_files=flags.config, overrides=flags.overrides)


def params_yaml(config: AvaConfig) -> str:
    """The resolved configuration as text that resolves to the same values anywhere.

    The names of preset and hardware are kept as a record where that doesn't change a value. It does where a key of
    theirs was set to null, and for `auto`, which another machine would resolve to another preset. Of a training that
    begins from a registered model the section `model` is what the user set: the rest is known where that can be looked
    up.
    """
    values = config.model_dump(mode="json", by_alias=True)
    if config.train.init is not None:
        values["model"] = config.model.model_dump(mode="json", exclude_unset=True)
    named = to_yaml(values)
    if values["preset"] != "auto" and resolve(params_text=named).config == config:
        return named
    return to_yaml({**values, "preset": None, "hardware": None})


def digest(config: AvaConfig) -> str:
    """First 12 hexadecimal digits of the SHA-256 of the resolved configuration."""
    return hashlib.sha256(params_yaml(config).encode()).hexdigest()[:12]


def head_commit(folder: Path = Path()) -> str:
    """The commit checked out in `folder`; empty without git or without a commit."""
    command = ["git", "-C", str(folder), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    commit = answer.stdout.strip()
    return commit if answer.returncode == 0 and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit) else ""


def parse_timeouts(given: Sequence[str], graph: Graph) -> dict[str, float]:
    """Seconds by component, from the values of --timeout.

    Args:
        given: `STEP=SECONDS`; a later one wins.
        graph: the pipeline that knows the steps.

    Raises:
        ConfigError: a value is none of these, or there is no such step.
    """
    timeouts: dict[str, float] = {}
    for text in given:
        step, _, number = text.partition("=")
        try:
            seconds = float(number)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            raise ConfigError(f"--timeout {text}: must be STEP=SECONDS, with seconds > 0")
        timeouts |= dict.fromkeys(graph.select(step, "--timeout"), seconds)
    return timeouts


def run(name: str, main: Callable[[], int | None]) -> None:
    """Call `main` and exit: 0, 1 (the work failed), 2 (wrong input), 129, 130 or 143 (a signal); no traceback."""
    handle_signals()
    outlive_terminal()
    try:
        sys.exit(main() or 0)
    except ConfigError as error:
        _say(name, *error.faults)
        sys.exit(ConfigError.exit_code)
    except AvaError as error:
        _say(name, str(error))
        sys.exit(AvaError.exit_code)
    except OSError as error:
        _say(name, f"{error.filename or name}: {error.strerror or error}")
        sys.exit(AvaError.exit_code)
    except (Interrupted, KeyboardInterrupt) as error:  # the second of a library that put Python's own handler back
        interrupted = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        _say(name, f"{interrupted.word}: run the same command again to go on")
        sys.exit(interrupted.code)


def _say(name: str, *lines: str) -> None:
    for line in lines:
        print(f"{name}: {redact(line)}", file=sys.stderr)
