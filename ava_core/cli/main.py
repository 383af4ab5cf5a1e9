"""`ava`: the entry point, the exit codes, and one line for every failure.

Run it as `ava` or `python -m ava_core.cli.main`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

import ava_core
from ava_core.cli import (
    align,
    average,
    chat,
    checkout,
    compare,
    config,
    doctor,
    export,
    generate,
    import_model,
    keys,
    merge,
    prune,
    record_outcome,
    search,
    serve,
    show,
    sweep,
    tasks,
)
from ava_core.cli.version import version_option
from ava_core.config.hardware import KERNELS, PROVIDER, requested_kernels, requested_provider
from ava_core.config.threads import let_threads_sleep
from ava_core.errors import AvaError, ConfigError, first_line, one_line, typed_line
from ava_core.interruption import Interrupted, handle_signals, outlive_terminal
from ava_core.steps.table import STEPS

ENVIRONMENT = (
    "AVA_TRACKING_URI",
    "AVA_LOG_LEVEL",
    "AVA_LOG_FILE",
    "AVA_WORK",
    "AVA_GIT_COMMIT",
    "AVA_PIPELINE_RUN",
    "AVA_API_KEYS",
    KERNELS,
    PROVIDER,
)
"""All `AVA_*` variables: nothing that changes a result, for that belongs into the configuration. AVA_KERNELS and
AVA_ONNX_PROVIDER change last bits, as another machine would, and so are a part of a step's key."""

app = typer.Typer(
    name="ava",
    help="Train, quantise, evaluate and register Mixture-of-Experts language models.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for step, spec in STEPS.items():
    if not spec.invoked:
        app.command(step)(import_module(f"ava_core.cli.{step}").command)
app.command("align")(align.command)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("search")(search.search)
app.command("serve")(serve.serve)
app.command("compare")(compare.compare)
app.command("export")(export.export)
app.command("tasks")(tasks.tasks)
app.command("import")(import_model.import_model)
app.command("prune")(prune.prune)
app.command("average")(average.average)
app.command("merge")(merge.merge)
app.command("show")(show.show)
app.command("sweep")(sweep.sweep)
app.command("keys")(keys.keys)
app.command("doctor")(doctor.doctor)
app.command("record-outcome", hidden=True)(record_outcome.record_outcome)
app.add_typer(config.app, name="config")


@app.callback()
def _main(context: typer.Context, version: Annotated[bool, version_option()] = False) -> None:
    if context.invoked_subcommand is None:
        from ava_core.cli.next_step import next_lines

        for line in next_lines(Path()):
            print(line)


def main() -> None:
    """Run the command line; exits 0, 1 (the work failed), 2 (wrong input), 129, 130 or 143 (a signal)."""
    handle_signals()
    outlive_terminal()
    let_threads_sleep()
    sys.exit(_run(lambda: app(standalone_mode=False)))


def _run(work: Callable[[], int | None]) -> int:
    try:
        _know_the_code()
        _refuse_unknown_environment()
        requested_kernels()
        requested_provider()
        return work() or 0
    except (Interrupted, KeyboardInterrupt) as error:
        # A KeyboardInterrupt is raised by a library that has put Python's own handler back.
        interrupted = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        _say(f"{interrupted.word}: run the same command again to go on")
        return 128 + interrupted.number
    except ConfigError as error:
        for fault in error.faults:
            _say(fault)
        return ConfigError.exit_code
    except typer.TyperException as error:
        return _explain_usage(error)
    except AvaError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(_explain_os_error(error))
    except Exception as error:
        return _fail(typed_line(error))


def _explain_usage(error: typer.TyperException) -> int:
    """A wrong flag or command in one line; no arguments at all show the help, as they should."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        with contextlib.suppress(BrokenPipeError):  # `ava config | head`: who asked has seen enough
            print(error.format_message(), flush=True)
    else:
        message = " ".join(error.format_message().split()) if hasattr(error, "format_message") else first_line(error)
        _say(f"{message.rstrip('.')}: see `{context.command_path if context else 'ava'} --help`")
    return ConfigError.exit_code


def _know_the_code() -> None:
    package = Path(ava_core.__file__).parent
    checkout.refuse_copied_environment(sys.argv[0], sys.prefix, package)
    with contextlib.suppress(FileNotFoundError):  # the folder that one stands in may be gone
        if line := checkout.foreign_checkout(Path.cwd(), package):
            _say(line)


def _refuse_unknown_environment() -> None:
    unknown = sorted(name for name in os.environ if name.startswith("AVA_") and name not in ENVIRONMENT)
    if unknown:
        allowed = ", ".join(ENVIRONMENT)
        raise ConfigError(
            *(
                f"environment: {name}: unknown variable: there are {allowed}; settings go into params.yaml"
                for name in unknown
            )
        )


def _explain_os_error(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        from ava_core.runtime import full_disk

        return full_disk.describe(error.filename or Path.cwd())
    file = f"{error.filename}: " if error.filename else ""
    return f"{file}{error.strerror or first_line(error)}"


def _fail(line: str) -> int:
    logger = logging.getLogger("ava_core")
    if logger.handlers:
        logger.debug("traceback", exc_info=True, extra={"file_only": True})
    _say(line)
    return AvaError.exit_code


def _say(line: str) -> None:
    from ava_core.redaction import redact

    line = one_line(line)
    print(f"ava: {redact(line)}", file=sys.stderr)
    logger = logging.getLogger("ava_core")
    if logger.handlers:  # without one, Python's last resort would print the line a second time
        logger.error("%s", line, extra={"file_only": True})


if __name__ == "__main__":
    main()
