"""What a Kubeflow Pipelines server may answer, or why none answers, as one line each."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from urllib.parse import urlsplit

from kfp_server_api.exceptions import ApiException
from urllib3 import exceptions as urllib3_errors

from ava_core.errors import AvaError

DETAIL_CHARACTERS = 300


@contextlib.contextmanager
def explained(host: str, hint: str = "") -> Iterator[None]:
    """Turn the client's exceptions in the block into one line.

    Args:
        host: the server's address.
        hint: what to do if it isn't known whether the server has taken the request.

    Raises:
        AvaError: for each of them.
    """
    try:
        yield
    except ApiException as error:
        unsure = hint if error.status in OUTCOME_UNKNOWN else ""
        raise AvaError(f"{host}: {describe_answer(error)}{unsure}") from error
    except urllib3_errors.HTTPError as error:
        unsure = "" if was_never_reached(error) else hint
        raise AvaError(f"{host}: {describe_failure(error)}{unsure}") from error


OUTCOME_UNKNOWN = (500, 502, 503, 504)
"""Answers of a server that broke on the way, or of a proxy before it: the request may have been taken."""


def describe_answer(error: ApiException) -> str:
    """What an answer that is none of the API's good ones means, and the way out."""
    status = error.status or 0
    if status in (401, 403):
        return (
            f"refuses us ({status}): give a valid token with --token-file, and on a multi-user server "
            f"--namespace: {detail(error)}"
        )
    if 200 <= status < 300:
        kind = (error.headers or {}).get("Content-Type") or "nothing"
        return f"answers with {kind} where the API answers with JSON, as a login page does: check --host and the token"
    if 300 <= status < 400:
        target = urlsplit((error.headers or {}).get("Location") or "")
        return f"sends us on to {target.scheme}://{target.netloc} ({status}): check --host and the token"
    if status == 429:
        return f"has too much to do (429): submit again later: {detail(error)}"
    return f"{status} {error.reason}: {detail(error)}"


def describe_failure(error: urllib3_errors.HTTPError) -> str:
    """Why there is no answer, and the way out."""
    cause = _cause(error)
    if isinstance(cause, urllib3_errors.SSLError):
        return f"TLS: {_one_line(str(cause))}: check --host, or give the signing authority with --ca-file"
    if isinstance(cause, urllib3_errors.ReadTimeoutError):
        return "took the connection and gave no answer in time"
    if isinstance(cause, urllib3_errors.ProtocolError):
        return f"dropped the connection ({_one_line(str(cause))})"
    return (
        f"no Kubeflow Pipelines server answers ({type(cause).__name__}): check --host, or forward its port: "
        "kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80"
    )


def was_never_reached(error: urllib3_errors.HTTPError) -> bool:
    """Whether the request certainly wasn't sent."""
    return isinstance(_cause(error), (urllib3_errors.ConnectTimeoutError, urllib3_errors.SSLError))


def may_still_be_working(error: Exception) -> bool:
    """Whether the server has the request and may yet carry it out."""
    return isinstance(error, urllib3_errors.HTTPError) and isinstance(_cause(error), urllib3_errors.ReadTimeoutError)


def detail(error: ApiException) -> str:
    """What the server says, as one line. Uploads answer with another field than all other calls."""
    with contextlib.suppress(ValueError, AttributeError):
        answer = json.loads(error.body or "")
        return _one_line(str(answer.get("message") or answer.get("error_message") or answer))
    return _one_line(str(error.body or "it says nothing more"))


def _cause(error: urllib3_errors.HTTPError) -> Exception:
    return getattr(error, "reason", None) or error


def _one_line(text: str) -> str:
    return " ".join(text.split())[:DETAIL_CHARACTERS]
