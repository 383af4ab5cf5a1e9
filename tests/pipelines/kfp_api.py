"""What the description of Kubeflow Pipelines' API allows: which requests, with what in them, and which replies.

The description (see `kfp_package`) is Swagger 2.0, whose schemas are JSON Schema draft 4. It comes from protocol
buffers, so it is read as strictly as those are: a field that it doesn't name isn't allowed. What it says only in words
is held too: a field that begins with "Output" isn't the client's to give, and one that begins with "Required" must be
there.
"""

import json
import re
from base64 import b64decode
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jsonschema
from werkzeug.wrappers import Request

from tests.pipelines.kfp_package import describe

FORMATS = jsonschema.FormatChecker(formats=())


class NotAllowed(Exception):
    """A request or a reply that the description doesn't allow."""


@FORMATS.checks("date-time", raises=ValueError)
def _is_date_time(value: Any) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


@FORMATS.checks("int64", raises=ValueError)
def _is_int64(value: Any) -> bool:
    return -(2**63) <= int(value) < 2**63


@FORMATS.checks("int32")
def _is_int32(value: Any) -> bool:
    return not isinstance(value, int) or -(2**31) <= value < 2**31


@FORMATS.checks("byte", raises=ValueError)
def _is_base64(value: Any) -> bool:
    return not isinstance(value, str) or b64decode(value, validate=True) is not None


@dataclass(frozen=True)
class Call:
    """A request that was allowed.

    Attributes:
        operation: the description's operationId.
        path: values in the path.
        query: values after the question mark, of the described types; a filter is read.
        body: the JSON of the body, None without one.
        file: the uploaded file, None without one.
    """

    operation: str
    path: dict[str, str]
    query: dict[str, Any]
    body: Any
    file: bytes | None


class Description:
    """The description, ready to judge."""

    def __init__(self) -> None:
        swagger = describe()
        self._requests = {name: _strict(schema, of_request=True) for name, schema in swagger["definitions"].items()}
        self._replies = {name: _strict(schema, of_request=False) for name, schema in swagger["definitions"].items()}
        self._operations = [
            (method.upper(), _pattern(route), operation)
            for route, methods in swagger["paths"].items()
            for method, operation in methods.items()
        ]
        # `pipelines/upload` before `pipelines/{pipeline_id}`: the longer the fixed part, the earlier.
        self._operations.sort(key=lambda item: len(re.sub(r"\(.*?\)", "", item[1].pattern)), reverse=True)
        self._by_id = {operation["operationId"]: operation for _, _, operation in self._operations}

    def operation_ids(self) -> set[str]:
        """All that the description has."""
        return set(self._by_id)

    def read(self, request: Request) -> Call | None:
        """The call that a request makes, None if the description has no such path.

        Raises:
            NotAllowed: the request has what the description doesn't allow, or lacks what it asks for.
        """
        for method, pattern, operation in self._operations:
            match = pattern.fullmatch(request.path)
            if match and method == request.method:
                return self._read(request, operation, match.groupdict())
        return None

    def check_reply(self, operation_id: str, status: int, value: Any) -> None:
        """Refuse a reply that the description doesn't allow for this status.

        Raises:
            NotAllowed: with the path of the field and the reason.
        """
        responses = self._by_id[operation_id]["responses"]
        described = responses.get(str(status), responses.get("default"))
        self._validate(value, _strict(described["schema"], of_request=False), self._replies, f"reply of {operation_id}")

    def _read(self, request: Request, operation: dict[str, Any], in_path: dict[str, str]) -> Call:
        name = operation["operationId"]
        parameters = operation.get("parameters", [])
        query = _read_query(request, [p for p in parameters if p["in"] == "query"], name)
        if query.get("filter"):
            query["filter"] = self._read_filter(query["filter"], name)
        in_path = {key.replace("__", "."): value for key, value in in_path.items()}
        body, file = None, None
        wanted = next((p for p in parameters if p["in"] in ("body", "formData")), None)
        if wanted is None:
            if request.get_data():
                raise NotAllowed(f"{name}: has a body, and the description none")
        elif wanted["in"] == "formData":
            file = _read_file(request, wanted, name)
        else:
            body = self._read_body(request, wanted, name)
        return Call(name, in_path, query, body, file)

    def _read_filter(self, text: str, name: str) -> dict[str, Any]:
        """The filter of a list call, in the spelling of the description.

        Protocol buffers also read camelCase names, and numbers for an enumeration's values; kfp.Client sends those.
        """
        operations = self._requests["V2beta1PredicateOperation"]["enum"]
        value = _read_json(text, f"{name}: query parameter filter")
        for predicate in value.get("predicates", []):
            for key in list(predicate):
                predicate[re.sub(r"[A-Z]", lambda letter: "_" + letter[0].lower(), key)] = predicate.pop(key)
            if isinstance(predicate.get("operation"), int):
                predicate["operation"] = operations[predicate["operation"]]
        self._validate(value, {"$ref": "#/definitions/V2beta1Filter"}, self._requests, f"{name}: filter")
        return value

    def _read_body(self, request: Request, wanted: dict[str, Any], name: str) -> Any:
        if request.mimetype != "application/json":
            raise NotAllowed(f"{name}: is {request.mimetype}, must be application/json")
        body = _read_json(request.get_data(), name)
        self._validate(body, _strict(wanted["schema"], of_request=True), self._requests, name)
        return body

    def _validate(self, value: Any, schema: dict[str, Any], definitions: dict[str, Any], what: str) -> None:
        validator = jsonschema.Draft4Validator({"allOf": [schema], "definitions": definitions}, format_checker=FORMATS)
        for error in validator.iter_errors(value):
            raise NotAllowed(f"{what}: {error.json_path}: {error.message}")


def _pattern(route: str) -> re.Pattern[str]:
    """`/runs/{run_id}:retry` as a regular expression; a value holds no slash and no colon."""
    parts = re.split(r"\{([^}]+)\}", route)
    return re.compile(
        "".join(
            re.escape(part) if index % 2 == 0 else f"(?P<{part.replace('.', '__')}>[^/:]+)"
            for index, part in enumerate(parts)
        )
    )


def _strict(schema: Any, *, of_request: bool) -> Any:
    """The schema with no other fields than those it names, and in a request only those that a client may give."""
    if not isinstance(schema, dict):
        return schema
    strict = {key: value for key, value in schema.items() if key not in ("title", "default", "readOnly")}
    if "items" in schema:
        strict["items"] = _strict(schema["items"], of_request=of_request)
    if isinstance(schema.get("additionalProperties"), dict):
        strict["additionalProperties"] = _strict(schema["additionalProperties"], of_request=of_request)
    if "properties" in schema:
        fields = {name: field for name, field in schema["properties"].items() if not (of_request and _is_output(field))}
        strict["properties"] = {name: _strict(field, of_request=of_request) for name, field in fields.items()}
        strict.setdefault("additionalProperties", False)
        required = [name for name, field in fields.items() if of_request and _is_required(field)]
        if required:
            strict["required"] = required
    return strict


def _is_output(field: dict[str, Any]) -> bool:
    return field.get("readOnly", False) or field.get("description", "").startswith("Output")


def _is_required(field: dict[str, Any]) -> bool:
    return re.match(r"(Input\. )?Required\b(?! if)", field.get("description", "")) is not None


def _read_query(request: Request, parameters: list[dict[str, Any]], name: str) -> dict[str, Any]:
    described = {parameter["name"]: parameter for parameter in parameters}
    values: dict[str, Any] = {}
    for key, texts in request.args.lists():
        if key not in described:
            raise NotAllowed(f"{name}: query parameter {key}: the description has none of this name")
        if len(texts) > 1:
            raise NotAllowed(f"{name}: query parameter {key}: given {len(texts)} times")
        values[key] = _read_value(texts[0], described[key], f"{name}: query parameter {key}")
    for key, parameter in described.items():
        if parameter.get("required") and key not in values:
            raise NotAllowed(f"{name}: query parameter {key}: is missing")
    return values


def _read_value(text: str, parameter: dict[str, Any], what: str) -> Any:
    if parameter["type"] == "integer":
        if not re.fullmatch(r"-?\d+", text) or not _is_int32(int(text)):
            raise NotAllowed(f"{what}: {text!r} is no 32-bit integer")
        return int(text)
    if parameter["type"] == "boolean":
        if text not in ("true", "false"):
            raise NotAllowed(f"{what}: {text!r} is neither true nor false")
        return text == "true"
    if parameter.get("enum") and text not in parameter["enum"]:
        raise NotAllowed(f"{what}: {text!r} is none of {', '.join(parameter['enum'])}")
    return text


def _read_json(text: str | bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise NotAllowed(f"{what}: no JSON: {error}") from None


def _read_file(request: Request, wanted: dict[str, Any], name: str) -> bytes:
    if request.mimetype != "multipart/form-data":
        raise NotAllowed(f"{name}: is {request.mimetype}, must be multipart/form-data")
    if set(request.files) != {wanted["name"]} or set(request.form):
        raise NotAllowed(f"{name}: must have one part, the file {wanted['name']}")
    return request.files[wanted["name"]].read()
