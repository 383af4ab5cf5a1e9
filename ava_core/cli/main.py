"""`ava`: the entry point, the exit codes, and one line for every failure.

Run it as `ava` or `python -m ava_core.cli.main`.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from types import FrameType
from typing import Annotated, Any

import typer

from ava_core import __version__
from ava_core.cli import config, evaluate, generate, preprocess, quantize, record_outcome, register, show, train
from ava_core.errors import AvaError, ConfigError

ENVIRONMENT = ("AVA_TRACKING_URI", "AVA_LOG_LEVEL", "AVA_LOG_FILE", "AVA_WORK", "AVA_GIT_COMMIT")
"""All `AVA_*` variables: nothing that changes a result, for that belongs into the configuration."""

app = typer.Typer(
    name="ava",
    help="Train, quantise, evaluate and register Mixture-of-Experts language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for step in (preprocess, train, quantize, evaluate, register):
    app.command(step.NAME)(step.command)
app.command("generate")(generate.generate)
app.command("show")(show.show)
app.command("record-outcome", hidden=True)(record_outcome.record_outcome)
app.add_typer(config.app, name="config")


def _version(asked: bool) -> None:
    if asked:
        print(f"ava {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; exits 0, 1 (the work failed), 2 (wrong input), 130 or 143 (interrupted)."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _refuse_unknown_environment()
        app(standalone_mode=True)
    except ConfigError as error:
        for fault in error.faults:
            _say(fault)
        sys.exit(ConfigError.exit_code)
    except AvaError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _say("interrupted: run the same command again to go on")
        sys.exit(130)
    except OSError as error:
        _fail(_explain_os_error(error))
    except Exception as error:
        _fail(f"{type(error).__name__}: {_first_line(error)}")


def _terminate(signum: int, frame: FrameType | None) -> None:
    _say("terminated: run the same command again to go on")
    sys.exit(143)


def _refuse_unknown_environment() -> None:
    unknown = sorted(name for name in os.environ if name.startswith("AVA_") and name not in ENVIRONMENT)
    if unknown:
        allowed = ", ".join(ENVIRONMENT)
        raise ConfigError(*(f"environment: {name}: unknown variable: there are {allowed}; settings go into params.yaml" for name in unknown))


def _explain_os_error(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{place}no space left on the disk: free some, or give --output and --work on another disk; finished work is kept"
    return f"{place}{error.strerror or _first_line(error)}"


def _fail(line: str) -> Any:
    logging.getLogger("ava_core").debug("traceback", exc_info=True, extra={"file_only": True})
    _say(line)
    sys.exit(AvaError.exit_code)


def _say(line: str) -> None:
    from ava_core.runtime.logs import redact

    print(f"ava: {redact(line)}", file=sys.stderr)
    logging.getLogger("ava_core").error("%s", line, extra={"file_only": True})


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


if __name__ == "__main__":
    main()
