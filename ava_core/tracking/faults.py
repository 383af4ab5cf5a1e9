"""Errors of a tracking server, in one line with the way out.

MLflow wraps whatever happened into an exception with a long text, so the text, and those of the exceptions behind it,
is where the cause is to be found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from ava_core.errors import AvaError, ConfigError
from ava_core.redaction import redact_address
from ava_core.server_address import WEB_SCHEMES

_STRANGE_HOST = re.compile(r"invalid host header", re.IGNORECASE)
_UNKNOWN = re.compile(r"error code 401\b|\b401 client error|UNAUTHENTICATED", re.IGNORECASE)
_FORBIDDEN = re.compile(r"error code 403\b|\b403 client error|PERMISSION_DENIED", re.IGNORECASE)
_FULL = re.compile(r"no space left on device|database or disk is full|disk quota exceeded|\b507\b", re.IGNORECASE)
_FAILING = re.compile(r"too many (5\d\d) error responses|error code (5\d\d)\b|\b(5\d\d) server error", re.IGNORECASE)
_PROXIED = re.compile(r"mlflow-artifacts URI was supplied", re.IGNORECASE)
_SILENT = re.compile(
    r"failed with exception|timed out|connection (?:aborted|refused|reset)|max retries exceeded", re.IGNORECASE
)


class Unreachable(AvaError):
    """No tracking server answers, or it answers with a 5xx status: the request was neither granted nor refused."""


class DeletedExperimentError(AvaError):
    """The experiment is deleted, and MLflow keeps its name.

    Args:
        uri: address of the server.
        name: `register.experiment`.
        experiment_id: the server's id of it.
    """

    def __init__(self, uri: str, name: str, experiment_id: str) -> None:
        super().__init__(
            f"register.experiment = {name}: is deleted on {redact_address(uri)}: name another,"
            f" or `mlflow experiments restore -x {experiment_id}`"
        )


@contextmanager
def server_errors(uri: str, doing: str) -> Iterator[None]:
    """Turn what MLflow and its HTTP client raise in the block into one line; errors of ours pass through.

    Raises:
        AvaError: the server refused, failed or fell silent, or a disk is full. What is done is kept, and the same
            call goes on from there.
    """
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except (MlflowException, RequestException) as error:
        raise _kind(_texts(error))(f"{redact_address(uri)}: {doing} failed: {explain(uri, error)}") from error
    except OSError as error:
        # A failed copy of a folder is an OSError without a number, and a list of all files in its text.
        if not _FULL.search(_texts(error)):
            raise
        raise AvaError(
            f"{doing} failed: no space left on this machine's disk: free some and run the step again"
        ) from error


def explain(uri: str, error: BaseException) -> str:
    """The cause of a failed request and the way out."""
    text = _texts(error)
    if _STRANGE_HOST.search(text):
        return f"the tracking server takes no requests under this name: start it with --allowed-hosts {_host(uri)}"
    if _UNKNOWN.search(text):
        return (
            "the tracking server doesn't know us: check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD,"
            " or MLFLOW_TRACKING_TOKEN"
        )
    if _FORBIDDEN.search(text):
        return (
            "the tracking server knows us and doesn't let us do that: ask for EDIT on the experiment and the registered"
            " model, or name others in register.experiment and register.model_name"
        )
    if _FULL.search(text):
        return "no space left on the disk of the tracking server: free some there and run the step again"
    if match := _FAILING.search(text):
        code = next(filter(None, match.groups()))
        return f"the tracking server keeps failing (HTTP {code}), often of a full disk: see its log, run the step again"
    if _PROXIED.search(text):
        return "its files can be had through its server only: start it with `make mlflow-ui`"
    if _SILENT.search(text):
        return "the tracking server doesn't answer any more: start it and run the step again, which goes on from there"
    return f"{one_line(str(error), uri)}: run the step again"


def unreachable(uri: str, error: BaseException) -> AvaError:
    """The error for a connection to `uri` that failed."""
    text = _texts(error)
    address = redact_address(uri)
    if _FULL.search(text) or _is_refusal(text):
        return AvaError(f"{address}: {explain(uri, error)}")
    if match := _FAILING.search(text):
        code = next(filter(None, match.groups()))
        return Unreachable(f"{address}: the server there answers with HTTP {code}: look into its log")
    if _SILENT.search(text):
        return Unreachable(
            f"{address}: no MLflow server answers: start one (`make mlflow-ui`), or set AVA_TRACKING_URI to another"
        )
    if "UNSUPPORTED" in text.upper() or urlsplit(uri).scheme not in (*WEB_SCHEMES, "sqlite"):
        return ConfigError(f"{address}: no tracking address that MLflow knows: give http://HOST:PORT or sqlite:///FILE")
    return AvaError(f"{address}: can't be used as tracking server: {one_line(text, uri)}: check the address")


def _kind(text: str) -> type[AvaError]:
    told = _is_refusal(text) or _FULL.search(text)
    return Unreachable if not told and (_FAILING.search(text) or _SILENT.search(text)) else AvaError


def _is_refusal(text: str) -> bool:
    return any(refusal.search(text) for refusal in (_STRANGE_HOST, _UNKNOWN, _FORBIDDEN))


def _host(uri: str) -> str:
    return urlsplit(uri).netloc.rpartition("@")[2]


def is_silent(error: BaseException) -> bool:
    """Whether the connection failed or timed out, so that no server answered."""
    return bool(_SILENT.search(_texts(error)))


def one_line(text: str, uri: str = "") -> str:
    """The first line of a message, without the credentials of `uri`."""
    whole = text.replace(uri, redact_address(uri)) if uri else text
    return whole.strip().partition("\n")[0][:300]


def _texts(error: BaseException) -> str:
    """The texts of an exception and of those that led to it."""
    texts = []
    seen: BaseException | None = error
    while seen is not None:
        texts.append(f"{type(seen).__name__}: {seen}")
        seen = seen.__cause__ or seen.__context__
    return "\n".join(texts)
