"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}} and a status."""

from __future__ import annotations

import math
from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from ava_core.errors import AvaError
from ava_core.serving.requests import Draining, Failed, QueueFull


class HttpError(Exception):
    """A request that is refused.

    Attributes:
        status: of the answer.
        code: OpenAI's word for it, or None.
        param: the field that is wrong, or None.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers: dict[str, str] = {}
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """The answer's body."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The answer."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


def from_engine(error: AvaError) -> HttpError:
    """What the engine says, as an answer."""
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


def from_validation(error: ValidationError) -> HttpError:
    """The first fault that pydantic found."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"] if not str(part).startswith(("list[", "str", "int")))
    if fault["type"] == "extra_forbidden":
        return HttpError(400, f"{where}: is no field of this request", param=where, code="unknown_parameter")
    given = f" = {fault['input']!r}"[:60] if not isinstance(fault["input"], dict | list) else ""
    message = f"{where}{given}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"
    return HttpError(400, message, param=where or None)
