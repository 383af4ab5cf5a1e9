"""The flags of `python -m pipelines.submit`, and what is wrong with them before anything is compiled or sent."""

from __future__ import annotations

import argparse
import os
import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ava_core.errors import ConfigError
from pipelines import command_line

PROGRAM = "pipelines.submit"
HOST_VARIABLE = "KF_PIPELINES_ENDPOINT"
TOKEN_FILE_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"  # noqa: S105  the name of a variable
TOKEN_VARIABLE = "KF_PIPELINES_TOKEN"  # noqa: S105
"""The first two are KFP's own variables; it has none for a token, and a flag would show in the list of processes."""
ON_RUNS = ("watch", "retry", "terminate")
ON_SCHEDULES = ("enable_schedule", "disable_schedule", "delete_schedule")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of the command line.

    Raises:
        ConfigError: one line per fault.
    """
    flags = _parser().parse_args(arguments)
    flags.host = flags.host.rstrip("/")
    flags.token = None if flags.token_file else os.environ.get(TOKEN_VARIABLE)
    faults = [*_host_faults(flags.host), *_secret_faults(flags), *_submit_id_faults(flags.submit_id)]
    faults += [*_token_file_faults(flags.token_file), *_ca_file_faults(flags.ca_file)]
    if not any(getattr(flags, name) for name in (*ON_RUNS, *ON_SCHEDULES)):
        faults += _data_faults(flags.data_uri)
    if flags.wait and (flags.cron or flags.interval):
        faults.append("--wait: a schedule has no end to wait for: leave it out")
    if faults:
        raise ConfigError(*faults)
    return flags


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description="Submit the pipeline to Kubeflow Pipelines, or tend what was submitted.",
        epilog=f"A bearer token that stands in no file is taken from the variable {TOKEN_VARIABLE}.",
    )
    command_line.add_config_flags(parser)
    parser.add_argument(
        "--flags",
        action=command_line.FlagsInOneText,
        metavar="'--FLAG VALUE ...'",
        help="further flags in one text, quoted as in a shell, as make's SUBMIT has them: --flags='--wait'",
    )
    _add_server(parser.add_argument_group("the server"))
    _add_run(parser.add_argument_group("what to run"))
    _add_times(parser.add_argument_group("again and again"))
    _add_instead(parser.add_argument_group("instead of submitting"))
    return parser


def _add_server(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--host",
        default=os.environ.get(HOST_VARIABLE, ""),
        help=f"address, as http://HOST:PORT (default: ${HOST_VARIABLE})",
    )
    group.add_argument("--namespace", help="Kubernetes namespace, on a multi-user server")
    group.add_argument(
        "--token-file",
        type=Path,
        default=os.environ.get(TOKEN_FILE_VARIABLE),
        help=f"file with a bearer token, read anew for each request (default: ${TOKEN_FILE_VARIABLE})",
    )
    group.add_argument("--ca-file", type=Path, help="PEM file of the authorities that may have signed its certificate")


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data-uri", default="", help="address at which the cluster reads the corpus, such as s3://bucket/raw"
    )
    group.add_argument("--tracking-uri", default="", help="MLflow server; default: as the cluster's environment says")
    group.add_argument("--image", help="image of every component (default: the one that `make images` built)")
    group.add_argument("--experiment", default="ava", help="KFP experiment of the run (default: %(default)s)")
    group.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="PLUGIN.OPTION=VALUE",
        help="option of a plugin of the server, such as mlflow.experiment_name=ava or mlflow.disabled=true; repeatable",
    )
    group.add_argument(
        "--submit-id", metavar="ID", help="idempotency key: there is one run of an id (default: a new id)"
    )
    group.add_argument("--wait", action="store_true", help="show the tasks' states until the run has ended")


def _add_times(group: argparse._ArgumentGroup) -> None:
    when = group.add_mutually_exclusive_group()
    when.add_argument(
        "--cron", metavar="'S M H D M W'", help="a recurring run at these times: six fields, seconds first"
    )
    when.add_argument(
        "--interval", metavar="TIME", help="a recurring run with that time between two: seconds, or such as 30m, 6h, 1d"
    )
    group.add_argument(
        "--max-concurrency",
        type=int,
        default=1,
        metavar="N",
        help="runs of the schedule at a time, 1 to 10 (default: %(default)s)",
    )


def _add_instead(group: argparse._ArgumentGroup) -> None:
    one = group.add_mutually_exclusive_group()
    one.add_argument("--watch", metavar="RUN_ID", help="wait for a run, as --wait does")
    one.add_argument("--retry", metavar="RUN_ID", help="go on with a run that failed; its finished steps are kept")
    one.add_argument("--terminate", metavar="RUN_ID", help="end a run")
    one.add_argument("--enable-schedule", metavar="ID", help="enable a recurring run that was disabled")
    one.add_argument(
        "--disable-schedule", metavar="ID", help="start no runs of a recurring run until it is enabled again"
    )
    one.add_argument("--delete-schedule", metavar="ID", help="remove a recurring run")


def _host_faults(host: str) -> list[str]:
    if not host:
        return ["--host: missing: give the address of the Kubeflow Pipelines server, such as http://localhost:8080"]
    if urlsplit(host).scheme not in ("http", "https") or not urlsplit(host).hostname:
        return [f"--host {host}: must be http://HOST[:PORT] or https://HOST[:PORT]"]
    return []


def _secret_faults(flags: argparse.Namespace) -> list[str]:
    """An address is logged and shown on the server's pages, so it must not hold a password."""
    addresses = {"--host": flags.host, "--data-uri": flags.data_uri, "--tracking-uri": flags.tracking_uri}
    return [
        f"{flag}: holds a user or a password, which would be shown: use a token or a Kubernetes secret"
        for flag, address in addresses.items()
        if "@" in urlsplit(address).netloc
    ]


def _token_file_faults(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        if path.read_text(encoding="utf-8").strip():
            return []
    except (OSError, UnicodeDecodeError) as error:
        return [f"--token-file {path}: can't be read: {_reason(error)}"]
    return [f"--token-file {path}: is empty"]


def _ca_file_faults(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        ssl.create_default_context(cafile=str(path))
    except OSError as error:  # ssl.SSLError is one
        return [f"--ca-file {path}: holds no certificate in PEM form: {_reason(error)}"]
    return []


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


def _data_faults(data_uri: str) -> list[str]:
    if not data_uri:
        return ["--data-uri: missing: give the address of the corpus in an object store, such as s3://bucket/raw"]
    if not urlsplit(data_uri).scheme:
        return [f"--data-uri {data_uri}: must be an address that the cluster can read, such as s3://bucket/raw"]
    return []


def _submit_id_faults(submit_id: str | None) -> list[str]:
    if submit_id is None or re.fullmatch(r"[\w.-]{1,64}", submit_id):
        return []
    return [f"--submit-id {submit_id}: must be 1 to 64 letters, digits, '.', '_' or '-'"]
