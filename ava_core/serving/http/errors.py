"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}} and a status."""

from __future__ import annotations

import difflib
import math
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse, Response

from ava_core.errors import AvaError
from ava_core.serving.requests import Draining, Failed, QueueFull

_PLAINER = {"missing": "must be given", "model_type": "must be a JSON object"}
"""Texts that replace pydantic's, by type of fault."""


class HttpError(Exception):
    """A request that is refused.

    Attributes:
        status: HTTP status of the answer.
        code: OpenAI's error code, or None.
        param: the field that is wrong, or None.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        # A request can spell out what is no Unicode, even in a field's name, and the answer repeats it.
        self.message, self.param = _printable(message), None if param is None else _printable(param)
        self.status, self.code = status, code
        self.headers: dict[str, str] = {}
        super().__init__(self.message)

    def body(self) -> dict[str, Any]:
        """The answer's body."""
        kinds = {
            401: "authentication_error",
            403: "permission_error",
            404: "not_found_error",
            429: "rate_limit_error",
        }
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The answer."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def from_engine(error: AvaError) -> HttpError:
    """The answer to an error of the engine."""
    if isinstance(error, QueueFull):
        found = HttpError(429, str(error), code="queue_full")
        found.headers["retry-after"] = str(math.ceil(error.retry_after))
    elif isinstance(error, Draining):
        found = HttpError(503, str(error), code="draining")
        found.headers["retry-after"] = "1"
    elif isinstance(error, Failed):
        found = HttpError(500, str(error), code="model_failed")
    else:
        found = HttpError(400, str(error))
    return found


def from_validation(error: ValidationError, kind: type[BaseModel]) -> HttpError:
    """The answer to the first fault that pydantic found in a `kind`."""
    fault = error.errors(include_url=False)[0]
    where = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        name = str(fault["loc"][-1])
        near = difflib.get_close_matches(name, kind.model_fields, n=1) if len(fault["loc"]) == 1 else []
        hint = f": did you mean {near[0]}?" if near else ""
        return HttpError(
            400,
            f"{where}: is no field of this request{hint}",
            param=name,
            code="unknown_parameter",
        )
    message = _PLAINER.get(fault["type"]) or fault["msg"].removeprefix("Value error, ")
    message = f"{message[:1].lower()}{message[1:]}"
    if not where:
        return HttpError(400, message if fault["type"] == "value_error" else f"body: {message}")
    given = "" if fault["type"] == "missing" or isinstance(fault["input"], dict | list) else f" = {fault['input']!r}"
    return HttpError(400, f"{where}{given[:60]}: {message}", param=where)
